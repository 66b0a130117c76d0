"""Names of all models, whatever they are for."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from natjax.backbones.isotropic import Isotropic, IsotropicConfig
from natjax.backbones.nat import NAT, NATConfig
from natjax.backbones.variants import VARIANTS
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.mask_rcnn import MaskRCNN
from natjax.dense.detection.variants import DETECTORS
from natjax.dense.segmentation.upernet import UPerNet, UPerNetConfig
from natjax.dense.segmentation.variants import SEGMENTORS

Kind = Literal["classifier", "segmentor", "detector"]
Config = NATConfig | IsotropicConfig | UPerNetConfig | MaskRCNNConfig
Model = NAT | Isotropic | UPerNet | MaskRCNN

# What makes a model of a config.
FAMILIES: Mapping[type[Config], type[Model]] = {
    NATConfig: NAT,
    IsotropicConfig: Isotropic,
    UPerNetConfig: UPerNet,
    MaskRCNNConfig: MaskRCNN,
}

_CONFIGS: Mapping[Kind, Mapping[str, Any]] = {
    "classifier": VARIANTS,
    "segmentor": SEGMENTORS,
    "detector": DETECTORS,
}
_MAKERS: Mapping[Kind, str] = {
    "classifier": "create_model",
    "segmentor": "create_segmentor",
    "detector": "create_detector",
}


def list_models(pattern: str = "*", *, kind: Kind | None = None) -> list[str]:
    """Names of the models, sorted.

    Args:
      pattern: shell pattern that the names must match, such as ``"dinat_*"``.
      kind: ``"classifier"`` for those of `natjax.create_model`, ``"segmentor"`` for those of
        `natjax.create_segmentor`, ``"detector"`` for those of `natjax.create_detector`; None for
        all.

    >>> import natjax
    >>> natjax.list_models("nat_[mt]*")
    ['nat_micro', 'nat_mini', 'nat_tiny']
    >>> natjax.list_models("*_nat_mini", kind="detector")
    ['cascade_mask_rcnn_nat_mini', 'mask_rcnn_nat_mini']
    """
    kinds = _CONFIGS if kind is None else (kind,)
    return sorted(name for one in kinds for name in fnmatch.filter(_CONFIGS[one], pattern))


def kind_of(name: str) -> Kind:
    """What a model is for.

    Raises:
      ValueError: no model of that name; the message suggests near ones.
    """
    for kind, configs in _CONFIGS.items():
        if name in configs:
            return kind
    raise ValueError(_unknown(name, list_models(), "models"))


def maker_of(name: str) -> str:
    """Name of the function of natjax that makes a model.

    Args:
      name: of the model.

    Raises:
      ValueError: no model of that name; the message suggests near ones.
    """
    return _MAKERS[kind_of(name)]


def find_config(name: str, kind: Kind | None = None) -> Any:
    """The config of a model as published.

    Args:
      name: of the model.
      kind: of the model; None for any.

    Raises:
      ValueError: no model of that name and kind; the message suggests near ones, or what makes
        models of its kind.
    """
    if kind is not None and name not in _CONFIGS[kind]:
        names = list_models(kind=kind)
        if name in list_models():
            maker = maker_of(name)
            raise ValueError(f"name must be a {kind}; {name!r} is made by natjax.{maker}")
        raise ValueError(_unknown(name, names, f"{kind}s"))
    return _CONFIGS[kind or kind_of(name)][name]


def known_configs() -> dict[str, Config]:
    """The configs of all models as published, by name."""
    return {name: config for configs in _CONFIGS.values() for name, config in configs.items()}


def abstract(config: Config) -> Model:
    """A model with shapes in the place of values, which takes no memory.

    Args:
      config: of the model.
    """
    return nnx.eval_shape(lambda: FAMILIES[type(config)](config, rngs=nnx.Rngs(0)))


def _unknown(name: object, names: list[str], what: str) -> str:
    near = difflib.get_close_matches(str(name), names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "natjax.list_models() has the names"
    return f"name must be one of the {len(names)} {what}; got {name!r}; {hint}"
