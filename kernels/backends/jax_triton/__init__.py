"""Implementation "jax_triton": kernels in Triton's language for NVIDIA GPUs since Ampere.

The algorithm is that of "pallas_triton": a program owns a tile of queries (of keys, in the backward
pass for keys and values) and walks over the slab of keys that they meet, chunk by chunk
(`natjax.kernels.plan.blocks`). Triton compiles the kernels itself, without Pallas in between, which
JAX is about to part with; jax-triton makes them calls of a JAX program.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Dao et al., *FlashAttention*, 2022 (online softmax).
"""

from natjax.kernels.backends.jax_triton.config import KernelConfig as settings  # noqa: N813
from natjax.kernels.backends.jax_triton.launch import launch as launch
from natjax.kernels.backends.jax_triton.support import NAME as NAME
from natjax.kernels.backends.jax_triton.support import supports as supports

__all__ = ["NAME", "launch", "settings", "supports"]
