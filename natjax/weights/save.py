"""Weights into files: safetensors and PyTorch's format, in each naming."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from natjax.backbones.nat import NATConfig
from natjax.weights.load import named_params
from natjax.weights.names import Naming
from natjax.weights.structure import Config, config_names, write_metadata
from natjax.weights.tables import HUGGING_FACE, NAMINGS, naming_of, namings_of
from natjax.weights.torchfile.writer import write_torch
from natjax.weights.untrusted import WeightsError

_TORCH = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *_TORCH)


def save_weights(
    model: nnx.Module, path: str | os.PathLike[str], *, naming: str = "natjax"
) -> None:
    """Write the parameters of a model to a file, which is replaced at once.

    Args:
      model: of any family, or a module that offers its names (`natjax.weights.tables.namings_of`).
      path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` for PyTorch's own format.
      naming: ``"natjax"``; ``"official"`` for the official PyTorch classes; ``"hf"`` for NAT and
        DiNAT of Hugging Face's transformers.

    Raises:
      WeightsError: another ending, a model that the naming has no names for, or a parameter
        without value.
    """
    namings = namings_of(model)
    target = check_target(path, naming, namings)
    values = {name: param.get_value() for name, param in named_params(model).items()}
    empty = [name for name, x in values.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if empty:
        raise WeightsError(f"{len(empty)} parameters have no value, {empty[0]} among them")
    arrays = {name: np.asarray(value) for name, value in values.items()}
    if namings is NAMINGS:
        write_weights(target, arrays, model.config, naming=naming)
    else:
        _write(target, to_naming(arrays, namings[naming]), {"natjax.naming": naming})


def check_target(
    path: str | os.PathLike[str], naming: str, namings: Mapping[str, Naming] = NAMINGS
) -> Path:
    """Check what can be wrong with a file to be written before anything is read.

    Raises:
      WeightsError: an unknown ending or naming, or no such folder.
    """
    target = Path(path).expanduser()
    if naming not in namings:
        raise WeightsError(f"naming must be one of {', '.join(namings)}; got {naming!r}")
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
    _write(path, theirs, write_metadata(config, model, naming))
    return len(theirs)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file beside the one of that name, and then in its place."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".natjax-") as folder:
        partial = Path(folder) / path.name
        if path.suffix in _TORCH:
            write_torch(partial, arrays)
        else:
            from safetensors.numpy import save_file

            save_file(
                {key: np.asarray(array, order="C") for key, array in arrays.items()},
                partial,
                metadata,
            )
        os.replace(partial, path)


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
    return to_naming(arrays, naming_of(config, naming), _root(config, naming))


def to_naming(
    arrays: Mapping[str, np.ndarray], naming: Naming, root: str = ""
) -> dict[str, np.ndarray]:
    """Arrays of ours under the names and in the layouts of a naming, with its buffers.

    Args:
      arrays: by our names.
      naming: the table.
      root: what ``{root}`` stands for in its templates.

    Raises:
      WeightsError: the naming has no names for some of them.
    """
    bindings, nameless = naming.bind(arrays, root)
    if nameless:
        raise WeightsError(
            f"naming {naming.name!r} has no names for {len(nameless)} parameters of this model,"
            f" {nameless[0]} among them (Hugging Face has NAT and DiNAT only); use 'official'"
        )
    theirs: dict[str, np.ndarray] = {}
    for binding in bindings:
        ours = tuple(arrays[name] for name in binding.ours)
        theirs |= zip(binding.theirs, binding.layout.to_theirs(ours), strict=True)
    return theirs | _buffers(theirs, naming)


def _root(config: Config, naming: str) -> str:
    """What Hugging Face puts before the keys: the family in a classifier, else nothing."""
    if naming != HUGGING_FACE.name or not config.num_classes or not isinstance(config, NATConfig):
        return ""
    if config.output_norms:
        raise WeightsError(
            "Hugging Face has no model with classifier and output norms; make it with"
            " num_classes=0, or with output_norms=False"
        )
    dilated = any(dilation > 1 for level in config.dilations for dilation in level)
    return "dinat." if dilated else "nat."


def _buffers(arrays: Mapping[str, np.ndarray], naming: Naming) -> dict[str, np.ndarray]:
    """What the source keeps beside the weights; equal ones are one array."""
    made: dict[object, np.ndarray] = {}
    found = {}
    for buffer in naming.buffers:
        for key, array in arrays.items():
            if buffer.make is not None and key.endswith(buffer.beside):
                identity = buffer.ending, array.shape
                if identity not in made:
                    made[identity] = buffer.make(array.shape)
                found[key.removesuffix(buffer.beside) + buffer.ending] = made[identity]
    return found
