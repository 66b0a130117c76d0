"""Implementation "mosaic_gpu": Pallas kernels for Hopper GPUs, compiled by Mosaic.

A block of threads owns a tile of 64 or 128 rows. The boxes of columns that the tile meets go
through a ring in shared memory, with the unit for tensor copies (`copies`); one warpgroup, or two,
multiply them with the rows. Shapes, tables and derivatives are those of the kernels in Triton
(`natjax.kernels.plan`, `natjax.kernels.autodiff`).

No kernel has ever run on a GPU. They are compiled for an H100, and what they compute is tested by
Pallas' interpreter on a CPU. So `implementation=None` passes over them; they run where a call names
them.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Shah et al., *FlashAttention-3*, 2024 (warpgroups that take turns at tensor cores).
"""

from natjax.kernels.backends.mosaic_gpu.config import KernelConfig as settings  # noqa: N813
from natjax.kernels.backends.mosaic_gpu.launch import launch as launch
from natjax.kernels.backends.mosaic_gpu.support import NAME as NAME
from natjax.kernels.backends.mosaic_gpu.support import supports as supports

__all__ = ["NAME", "launch", "settings", "supports"]
