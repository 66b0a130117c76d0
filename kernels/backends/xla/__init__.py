"""Implementation "xla": tiles of queries against slabs of keys, in plain JAX, for any device.

Queries are cut into tiles, and each tile attends densely, under a mask, to the slab of keys that
holds all its windows (`natjax.kernels.backends.xla.tiles`). A loop reads tiles and slabs where they
are in the arrays, and adds its results in place; so do its derivatives of any order and in either
mode (`natjax.kernels.backends.xla.walk`). What is stored besides the results is the logits of a few
tiles.

The bias is laid out by small products with one-hot matrices, so no derivative has a scatter. Tokens
are never mixed with batch or heads: arrays sharded over these stay where they are.
"""

from natjax.kernels.backends.xla.fused import attention as attention
from natjax.kernels.backends.xla.unfused import av as av
from natjax.kernels.backends.xla.unfused import qk as qk
