"""Tokens of neighborhood attention, split over the devices of a mesh."""

from natjax.kernels.sharding.space import space as space
