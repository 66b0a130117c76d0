"""How arrays are split over the devices of a mesh, where ops have to be told."""

from natjax.kernels.sharding.placement import split as split
from natjax.kernels.sharding.space import space as space
