"""Kernels for windows too large for a tile's whole slab, which go over it chunk by chunk."""
