"""Neighborhood attention for JAX, and the Neighborhood Attention Transformers built on it.

Ops: `na1d`, `na2d`, `na3d`, their unfused halves ``na*_qk`` and ``na*_av``, and `merge_attentions`;
`explain` tells which implementation runs a call, and why.
Modules (Flax NNX): `NeighborhoodAttention1D`, `NeighborhoodAttention2D`, `NeighborhoodAttention3D`.
Models: `create_model`, `list_models`, `model_summary`; from configs of one's own, `NAT` and
`Isotropic`. Semantic segmentation: `create_segmentor`, `UPerNet`. Detection: `create_detector`,
`MaskRCNN`. More of both in `natjax.dense`.
Weights: `load_weights`, `save_weights`; more in `natjax.weights`.

The public names are listed in ``__init__.pyi``, for type checkers and for the lines below alike.
Each is imported when first used, so that ``natjax --help`` does not wait for JAX.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
