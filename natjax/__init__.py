"""Neighborhood attention for JAX, and the Neighborhood Attention Transformers built on it.

Ops: `na1d`, `na2d`, `na3d`, their unfused halves ``na*_qk`` and ``na*_av``, and `merge_attentions`.
Modules (Flax NNX): `NeighborhoodAttention1D`, `NeighborhoodAttention2D`, `NeighborhoodAttention3D`.
Models: `create_model`, `list_models`.

Names are imported when first used, so that ``natjax --help`` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.kernels.api import merge_attentions as merge_attentions
    from natjax.kernels.api import na1d as na1d
    from natjax.kernels.api import na1d_av as na1d_av
    from natjax.kernels.api import na1d_qk as na1d_qk
    from natjax.kernels.api import na2d as na2d
    from natjax.kernels.api import na2d_av as na2d_av
    from natjax.kernels.api import na2d_qk as na2d_qk
    from natjax.kernels.api import na3d as na3d
    from natjax.kernels.api import na3d_av as na3d_av
    from natjax.kernels.api import na3d_qk as na3d_qk

__version__ = "0.1.0"

_HOME = {
    "natjax.kernels.api": (
        "merge_attentions",
        "na1d",
        "na1d_av",
        "na1d_qk",
        "na2d",
        "na2d_av",
        "na2d_qk",
        "na3d",
        "na3d_av",
        "na3d_qk",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'natjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
