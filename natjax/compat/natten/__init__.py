"""NATTEN's interface on natjax: ``import natjax.compat.natten as natten``.

Names and arguments are those of NATTEN 0.14 to 0.21, arrays are JAX's, and modules are Flax NNX's.
What chooses NATTEN's CUDA kernels (``backend``, tile shapes, schedules) is accepted and does
nothing: natjax chooses by itself, and `natjax.explain` says what.

Two things cannot be kept. The fifth positional argument of the fused ops was ``dilation`` up to
0.17 and is ``stride`` from 0.20 on, so here it must be named. And modules draw their parameters
from ``rngs``.
"""

from natjax.compat.natten import functional
from natjax.compat.natten.fused import attention, merge_attentions, na1d, na2d, na3d
from natjax.compat.natten.modules import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from natjax.compat.natten.switches import (
    are_deterministic_algorithms_enabled,
    disable_fused_na,
    has_bfloat,
    has_cuda,
    has_fna,
    has_fused_na,
    has_half,
    is_fna_enabled,
    set_memory_usage_preference,
    use_deterministic_algorithms,
    use_fna,
    use_fused_na,
    use_kv_parallelism_in_fused_na,
)

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "are_deterministic_algorithms_enabled",
    "attention",
    "disable_fused_na",
    "functional",
    "has_bfloat",
    "has_cuda",
    "has_fna",
    "has_fused_na",
    "has_half",
    "is_fna_enabled",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_fna",
    "use_fused_na",
    "use_kv_parallelism_in_fused_na",
]
