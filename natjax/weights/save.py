"""Weights into files: of a model, or from one file into another with the same bits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from natjax.backbones.isotropic import IsotropicConfig
from natjax.registry import Config, abstract, find_config
from natjax.weights.comparison import LoadReport
from natjax.weights.formats import TORCH_SUFFIXES, check_target, write_file
from natjax.weights.load import Weights, fit_arrays, named_params, open_weights
from natjax.weights.names import Naming, Shape, by_name, namings_of
from natjax.weights.published import find_published, is_published_name
from natjax.weights.structure import (
    backbone_of,
    config_names,
    config_of,
    find_model,
    known_namings,
    with_backbone,
    write_metadata,
)
from natjax.weights.untrusted import WeightsError

# Index tables of ViT-RPB may take so many bytes, or as many as the weights.
_MOST_INDEX = 2**25


def save_weights(
    model: nnx.Module, path: str | os.PathLike[str], *, naming: str = "natjax"
) -> None:
    """Write the parameters of a model to a file, which is replaced at once.

    Args:
      model: of natjax, or a module that offers its names (`natjax.weights.names.namings_of`).
      path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` for PyTorch's own format.
      naming: ``"natjax"``; ``"official"`` for the official PyTorch classes, mmsegmentation or
        mmdetection; ``"hf"`` for NAT and DiNAT of Hugging Face's transformers.

    Raises:
      WeightsError: another ending, a model that the naming has no names for, or a parameter
        without value.
    """
    target, table = check_target(path), _choose(namings_of(model), naming)
    values = {name: param.get_value() for name, param in named_params(model).items()}
    empty = [name for name, x in values.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if empty:
        raise WeightsError(f"{len(empty)} parameters have no value, {empty[0]} among them")
    arrays = rename_arrays({name: np.asarray(value) for name, value in values.items()}, table)
    metadata = {"natjax.naming": naming}
    config = config_of(model)
    if config is not None:
        names = config_names(config)
        metadata = write_metadata(config, names[0] if len(names) == 1 else None, naming)
    write_file(target, arrays, metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did.

    Attributes:
      read: what was read and how it was mapped.
      path: the file written.
      naming: of its keys.
      arrays: how many it holds.
      model: name of the model; None for one of the caller's own.
      config: of the model.
    """

    read: LoadReport
    path: str
    naming: str
    arrays: int
    model: str | None
    config: Config


def convert_weights(
    source: Weights,
    target: str | os.PathLike[str],
    *,
    model: str | None = None,
    naming: str | None = None,
    ema: bool = False,
    drop_head: bool = False,
    resize_rpb: bool = False,
) -> Conversion:
    """Convert weights of a model, segmentor or detector; dtypes and bits stay as they are.

    Args:
      source: as for `natjax.load_weights`.
      target: file to write; its ending says the format, as for `natjax.save_weights`.
      model: name of the model; needed where the file does not tell. That of a backbone takes the
        backbone out of a segmentor or detector.
      naming: ``"natjax"``, ``"official"`` or ``"hf"``; None is official for PyTorch's format and
        natjax for safetensors.
      ema: take the averaged weights of a training checkpoint.
      drop_head: leave the classifier out.
      resize_rpb: resize position biases to the window of `model`.

    Raises:
      WeightsError: the weights cannot be found, read, recognised or written; then there is no new
        file.
    """
    naming, path = naming or default_naming(target), check_target(target)
    known = known_namings() if model is None else by_name(_known(model).namings()).values()
    models = [] if model is None else [model]
    state = open_weights(source, models=models, ema=ema, namings=known)
    name, config = find_model(state, model)
    if is_published_name(source) and model is not None:
        config = with_backbone(config, find_published([model], str(source)).options)
    if drop_head:
        config = _without_head(config)
    table = _choose(by_name(config.namings()), naming)
    shapes, integers = _shapes(config)
    arrays, report = fit_arrays(
        state, shapes, integers=integers, drop_head=drop_head, resize_rpb=resize_rpb
    )
    if naming == "official":
        _check_index(state.where, config, sum(array.nbytes for array in arrays.values()))
    theirs = rename_arrays(arrays, table)
    write_file(path, theirs, write_metadata(config, name, naming))
    return Conversion(
        read=report, path=str(path), naming=naming, arrays=len(theirs), model=name, config=config
    )


def default_naming(path: str | os.PathLike[str]) -> str:
    """The naming that suits a file by its ending."""
    return "official" if Path(path).suffix in TORCH_SUFFIXES else "natjax"


def _choose(namings: Mapping[str, Naming], name: str) -> Naming:
    if name not in namings:
        raise WeightsError(f"naming must be one of {', '.join(namings)}; got {name!r}")
    return namings[name]


def _known(model: str) -> Config:
    try:
        return find_config(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _without_head(config: Config) -> Config:
    if backbone_of(config) is not config:
        raise WeightsError(
            "drop_head (--drop-head) is for classifiers; a segmentor or detector is converted"
            " whole, and its backbone alone by the name of the backbone (--model)"
        )
    return dataclasses.replace(config, num_classes=0)


def _shapes(config: Config) -> tuple[dict[str, Shape], list[str]]:
    """Shape of every parameter of a model by name, and names of integers; nothing is computed."""
    params = named_params(abstract(config))
    integers = [name for name, param in params.items() if np.issubdtype(param.dtype, np.integer)]
    return {name: tuple(param.shape) for name, param in params.items()}, integers


def _check_index(where: str, config: Config, weights: int) -> None:
    """Refuse to write index tables out of proportion: a small file may be of a vast map.

    The official ViT-RPB keeps an index for each pair of tokens in each layer.
    """
    if not isinstance(config, IsotropicConfig) or config.kernel_size is not None:
        return
    index = 8 * config.map_size**4 * config.depth
    if index > max(_MOST_INDEX, weights):
        raise WeightsError(
            f"{where}: the index tables of the official names would take {index} bytes beside"
            f" {weights} of weights; write .safetensors with natjax's names, which has none"
        )


def rename_arrays(arrays: Mapping[str, np.ndarray], naming: Naming) -> dict[str, np.ndarray]:
    """Arrays of ours in the names and layouts of a naming, as a strict load there wants them.

    Args:
      arrays: by our names.
      naming: the table.

    Raises:
      WeightsError: the naming has no names for some of them.
    """
    bindings, nameless = naming.bind(arrays, naming.root)
    if nameless:
        raise WeightsError(
            f"naming {naming.name!r} has no names for {len(nameless)} parameters of this model,"
            f" {nameless[0]} among them (Hugging Face has NAT and DiNAT only); use 'official'"
        )
    if naming.refusal:
        raise WeightsError(naming.refusal)
    theirs: dict[str, np.ndarray] = {}
    for binding in bindings:
        ours = tuple(arrays[name] for name in binding.ours)
        theirs |= zip(binding.theirs, binding.layout.to_theirs(ours), strict=True)
    return theirs | _buffers(theirs, naming)


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
