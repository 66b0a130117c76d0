"""Implementation "xla": tiles of queries against slabs of keys, in plain JAX, for any device.

Queries are cut into tiles, and each tile attends densely, under a mask, to the slab of keys that
holds all its windows (`natjax.kernels.backends.xla.tiles`). A loop runs over the rows of tiles
along the first axis; its body is rematerialised in reverse mode. What is stored is the slabs along
that axis (keys and values about twice over, never ``K`` times) and the logits of a few tiles.

Slabs are cut by static slices, and the bias is laid out by small products with one-hot matrices.
So the transpose that JAX derives has no scatter and is as good as a hand-written backward pass,
and forward mode and higher derivatives come with it. Tokens are never mixed with batch or heads:
arrays sharded over these stay where they are.
"""

from natjax.kernels.backends.xla.fused import attention as attention
from natjax.kernels.backends.xla.unfused import av as av
from natjax.kernels.backends.xla.unfused import qk as qk
