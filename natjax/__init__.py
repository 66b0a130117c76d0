"""Neighborhood attention for JAX, and the Neighborhood Attention Transformers built on it.

Ops: `na1d`, `na2d`, `na3d`, their unfused halves ``na*_qk`` and ``na*_av``, and `merge_attentions`;
`explain` tells which implementation runs a call, and why.
Modules (Flax NNX): `NeighborhoodAttention1D`, `NeighborhoodAttention2D`, `NeighborhoodAttention3D`.
Models: `create_model`, `list_models`, `model_summary`; from configs of one's own, `NAT` and
`Isotropic`.
Weights: `load_weights`, `save_weights`; more in `natjax.weights`.

Names are imported when first used, so that ``natjax --help`` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natjax.backbones.isotropic import Isotropic as Isotropic
    from natjax.backbones.isotropic import IsotropicConfig as IsotropicConfig
    from natjax.backbones.nat import NAT as NAT
    from natjax.backbones.nat import NATConfig as NATConfig
    from natjax.create import create_model as create_model
    from natjax.create import list_models as list_models
    from natjax.create import model_config as model_config
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
    from natjax.kernels.explain import Explanation as Explanation
    from natjax.kernels.explain import explain as explain
    from natjax.nn.attention import NeighborhoodAttention1D as NeighborhoodAttention1D
    from natjax.nn.attention import NeighborhoodAttention2D as NeighborhoodAttention2D
    from natjax.nn.attention import NeighborhoodAttention3D as NeighborhoodAttention3D
    from natjax.summary import ModelSummary as ModelSummary
    from natjax.summary import model_summary as model_summary
    from natjax.weights.load import load_weights as load_weights
    from natjax.weights.save import save_weights as save_weights

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
    "natjax.kernels.explain": ("Explanation", "explain"),
    "natjax.nn.attention": (
        "NeighborhoodAttention1D",
        "NeighborhoodAttention2D",
        "NeighborhoodAttention3D",
    ),
    "natjax.backbones.isotropic": ("Isotropic", "IsotropicConfig"),
    "natjax.create": ("create_model", "list_models", "model_config"),
    "natjax.backbones.nat": ("NAT", "NATConfig"),
    "natjax.summary": ("ModelSummary", "model_summary"),
    "natjax.weights.load": ("load_weights",),
    "natjax.weights.save": ("save_weights",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'natjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
