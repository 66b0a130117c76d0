"""Plans: how a neighborhood is cut into blocks of queries and keys, for any backend.

`natjax.kernels.plan.blocks` has tiles, slabs and chunks; `natjax.kernels.plan.slabs`, the smallest
slabs; `natjax.kernels.plan.reach`, the chunks that a tile meets; and
`natjax.kernels.plan.pattern`, what is added to the logits of each block.
"""
