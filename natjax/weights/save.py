"""Weights into files: safetensors and PyTorch's format, in each naming."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from natjax.backbones.base import VisionModel
from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig
from natjax.weights.errors import WeightsError
from natjax.weights.load import named_params
from natjax.weights.metadata import write_metadata
from natjax.weights.structure import Config, config_names
from natjax.weights.tables import NAMINGS
from natjax.weights.torch_writer import write_torch

NamingName = Literal["natjax", "official", "hf"]
_TORCH = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *_TORCH)


def save_weights(
    model: VisionModel, path: str | os.PathLike[str], *, naming: NamingName = "natjax"
) -> None:
    """Write the parameters of a model to a file, which is replaced at once.

    Args:
      model: of any family.
      path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` for PyTorch's own format.
      naming: ``"natjax"``; ``"official"`` for the official PyTorch classes; ``"hf"`` for NAT and
        DiNAT of Hugging Face's transformers.

    Raises:
      WeightsError: another ending, a model that the naming has no names for, or a parameter
        without value.
    """
    target, kind = check_target(path, naming), NAMINGS[naming].name
    values = {name: param.get_value() for name, param in named_params(model).items()}
    empty = [name for name, x in values.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if empty:
        raise WeightsError(f"{len(empty)} parameters have no value, {empty[0]} among them")
    arrays = {name: np.asarray(value) for name, value in values.items()}
    write_weights(target, arrays, model.config, naming=kind)


def check_target(path: str | os.PathLike[str], naming: str) -> Path:
    """Check what can be wrong with a file to be written before anything is read.

    Raises:
      WeightsError: an unknown ending or naming, or no such folder.
    """
    target = Path(path).expanduser()
    if naming not in NAMINGS:
        raise WeightsError(f"naming must be one of {', '.join(NAMINGS)}; got {naming!r}")
    if target.suffix not in _SUFFIXES:
        raise WeightsError(f"the file must end in one of {', '.join(_SUFFIXES)}; got {target.name}")
    if not target.parent.is_dir():
        raise WeightsError(f"there is no folder {target.parent}")
    return target


def default_naming(path: str | os.PathLike[str]) -> str:
    """The naming that suits a file by its ending."""
    return "official" if Path(path).suffix in _TORCH else "natjax"


def write_weights(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    config: Config,
    *,
    naming: str,
    model: str | None = None,
) -> int:
    """Write arrays of ours in a naming.

    Args:
      path: checked by `check_target`.
      arrays: by our names, of all parameters of the model.
      config: of the model.
      naming: name of the naming.
      model: name of the model; None looks for it by the config.

    Returns:
      The number of arrays in the file.
    """
    theirs = rename_arrays(arrays, config, naming)
    if model is None:
        names = config_names(config)
        model = names[0] if len(names) == 1 else None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".natjax-") as folder:
        partial = Path(folder) / path.name
        if path.suffix in _TORCH:
            write_torch(partial, theirs)
        else:
            from safetensors.numpy import save_file

            save_file(
                {key: np.ascontiguousarray(array) for key, array in theirs.items()},
                partial,
                write_metadata(config, model, naming),
            )
        os.replace(partial, path)
    return len(theirs)


def rename_arrays(
    arrays: Mapping[str, np.ndarray], config: Config, naming: str
) -> dict[str, np.ndarray]:
    """Arrays of ours in another naming and its layouts, as a strict load there wants them.

    Args:
      arrays: by our names.
      config: of the model.
      naming: name of the naming.

    Raises:
      WeightsError: the naming has no names for this model.
    """
    table = NAMINGS[naming]
    bindings, nameless = table.bind(arrays, _root(config, naming))
    if nameless:
        raise WeightsError(
            f"naming {naming!r} has no names for {len(nameless)} parameters of this model,"
            f" {nameless[0]} among them (Hugging Face has NAT and DiNAT only); use 'official'"
        )
    theirs: dict[str, np.ndarray] = {}
    for binding in bindings:
        ours = tuple(arrays[name] for name in binding.ours)
        theirs |= zip(binding.theirs, binding.layout.to_theirs(ours), strict=True)
    return theirs | (_buffers(config) if naming == "official" else {})


def _root(config: Config, naming: str) -> str:
    """What Hugging Face puts before the keys: the family in a classifier, else nothing."""
    if naming != "hf" or not config.num_classes or not isinstance(config, NATConfig):
        return ""
    if config.output_norms:
        raise WeightsError(
            "Hugging Face has no model with classifier and output norms; make it with"
            " num_classes=0, or with output_norms=False"
        )
    dilated = any(dilation > 1 for level in config.dilations for dilation in level)
    return "dinat." if dilated else "nat."


def _buffers(config: Config) -> dict[str, np.ndarray]:
    """The index tables that the official ViT-RPB keeps in its state dict, one in each layer.

    Entry ``[query, key]`` is the place of the pair's bias in the flattened table: row and column
    distance, key minus query, counted from the least.
    """
    if not isinstance(config, IsotropicConfig) or config.kernel_size is not None:
        return {}
    side = config.map_size
    places = np.stack(np.divmod(np.arange(side**2), side))
    distance = places[:, None, :] - places[:, :, None] + side - 1
    index = distance[0] * (2 * side - 1) + distance[1]
    return {
        f"layers.{i}.attn.relative_position_index": index.astype(np.int64)
        for i in range(config.depth)
    }
