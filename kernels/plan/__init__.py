"""Plans: how a neighborhood is cut into blocks of queries and keys, for any backend.

`natjax.kernels.plan.blocks` has tiles, slabs and chunks; `natjax.kernels.plan.penalty`, what is
added to the logits of each block; `natjax.kernels.plan.slabs`, the smallest slabs.
"""
