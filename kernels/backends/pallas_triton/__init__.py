"""Implementation "pallas_triton": Pallas kernels for NVIDIA GPUs since Ampere, lowered by Triton.

A program owns a tile of queries (of keys, in the backward pass for keys and values) and walks over
the slab of keys that they meet, block by block (`natjax.kernels.plan.blocks`), as flash attention
does over all keys: no logits reach memory. Arrays are read in place, through token indices, so
neither dilation nor borders need a copy.

What is added to the logits is loaded from a table (`natjax.kernels.plan.pattern`). Without a bias
and with windows so large that the table would be too, kernels compute the mask instead.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Dao et al., *FlashAttention*, 2022 (online softmax).
"""

from natjax.kernels.backends.pallas_triton.launch import launch as launch
from natjax.kernels.backends.pallas_triton.support import NAME as NAME
from natjax.kernels.backends.pallas_triton.support import supports as supports
from natjax.kernels.backends.triton_common.config import KernelConfig as settings  # noqa: N813

__all__ = ["NAME", "launch", "settings", "supports"]
