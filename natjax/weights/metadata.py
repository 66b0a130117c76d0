"""What natjax writes beside the arrays of a safetensors file: model, naming, config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import natjax
from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.weights.errors import WeightsError

_FAMILIES = {"NAT": NATConfig, "Isotropic": IsotropicConfig}
_PREFIX = "natjax."
_MOST_BLOCKS = 10_000  # a config costs memory by its blocks, and files come from strangers


def write_metadata(
    config: NATConfig | IsotropicConfig, model: str | None, naming: str
) -> dict[str, str]:
    """The metadata of a file.

    Args:
      config: of the model.
      model: its name; None for one of one's own.
      naming: of the keys.
    """
    family = "NAT" if isinstance(config, NATConfig) else "Isotropic"
    values = {
        "version": natjax.__version__,
        "naming": naming,
        "config": json.dumps({"family": family, **dataclasses.asdict(config)}),
    }
    if model is not None:
        values["model"] = model
    # transformers reads no safetensors file without this.
    tag = {} if naming == "natjax" else {"format": "pt"}
    return tag | {_PREFIX + name: value for name, value in values.items()}


def read_model(metadata: Mapping[str, str]) -> str | None:
    """The name of the model, if it is there."""
    return metadata.get(f"{_PREFIX}model")


def read_config(metadata: Mapping[str, str]) -> NATConfig | IsotropicConfig | None:
    """The config of the model, if it is there.

    Raises:
      WeightsError: it is damaged, or of another version of natjax.
    """
    text = metadata.get(f"{_PREFIX}config")
    if text is None:
        return None
    try:
        values = json.loads(text)
        family = _FAMILIES[values.pop("family")]
        depths = values.get("depths", [values.get("depth", 0)])
        if sum(depths) > _MOST_BLOCKS:
            raise ValueError(f"more than {_MOST_BLOCKS} blocks")
        return family(**{name: _tuples(value) for name, value in values.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        version = metadata.get(f"{_PREFIX}version", "unknown")
        raise WeightsError(
            f"the model's config in the file cannot be read ({error!r}; written by natjax"
            f" {version}); pass the name of the model"
        ) from error


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
