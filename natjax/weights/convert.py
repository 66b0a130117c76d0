"""Weights from one file into another: other names, other format, same bits."""

from __future__ import annotations

import dataclasses
import os

from flax import nnx

from natjax.backbones.isotropic import Isotropic
from natjax.backbones.nat import NAT, NATConfig
from natjax.create import model_config
from natjax.weights.comparison import LoadReport
from natjax.weights.load import Weights, fit_arrays, named_params, open_weights
from natjax.weights.names import Shape
from natjax.weights.published import find_published, is_published_name
from natjax.weights.save import check_target, default_naming, write_weights
from natjax.weights.state_dict import StateDict
from natjax.weights.structure import (
    Config,
    adapt,
    candidates,
    config_structure,
    read_config,
    read_model,
    source_structure,
)
from natjax.weights.tables import has_pair_index
from natjax.weights.untrusted import WeightsError

# Index tables of ViT-RPB may take so many bytes, or as many as the weights.
_MOST_INDEX = 2**25


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
    """Convert weights; dtypes and bits stay as they are.

    Args:
      source: as for `natjax.load_weights`.
      target: file to write; its ending says the format, as for `natjax.save_weights`.
      model: name of the model; needed where the file does not tell.
      naming: ``"natjax"``, ``"official"`` or ``"hf"``; None is official for PyTorch's format and
        natjax for safetensors.
      ema: take the averaged weights of a training checkpoint.
      drop_head: leave the classifier out.
      resize_rpb: resize position biases to the window of `model`.

    Raises:
      WeightsError: the weights cannot be found, read, recognised or written; then there is no new
        file.
    """
    naming = naming or default_naming(target)
    path = check_target(target, naming)
    models = [] if model is None else [_known(model)]
    state = open_weights(source, models=models, ema=ema)
    name, config = find_model(state, model)
    if is_published_name(source) and model is not None:
        options = find_published([model], str(source)).options
        config = dataclasses.replace(config, **options)
    if drop_head:
        config = dataclasses.replace(config, num_classes=0)
    arrays, report = fit_arrays(
        state, model_shapes(config), drop_head=drop_head, resize_rpb=resize_rpb
    )
    if naming == "official":
        _check_index(state.where, config, sum(array.nbytes for array in arrays.values()))
    count = write_weights(path, arrays, config, naming=naming, model=name)
    return Conversion(
        read=report, path=str(path), naming=naming, arrays=count, model=name, config=config
    )


def _check_index(where: str, config: Config, weights: int) -> None:
    """Refuse to write index tables out of proportion: a small file may be of a vast map.

    The official ViT-RPB keeps an index for each pair of tokens in each layer.
    """
    if not has_pair_index(config):
        return
    index = 8 * config.map_size**4 * config.depth
    if index > max(_MOST_INDEX, weights):
        raise WeightsError(
            f"{where}: the index tables of the official names would take {index} bytes beside"
            f" {weights} of weights; write .safetensors with natjax's names, which has none"
        )


def _known(model: str) -> str:
    try:
        model_config(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return model


def model_shapes(config: Config) -> dict[str, Shape]:
    """Shape of every parameter of a model by name; nothing is computed."""
    return {name: tuple(param.shape) for name, param in named_params(abstract(config)).items()}


def abstract(config: Config) -> NAT | Isotropic:
    """A model with shapes for values."""
    family = NAT if isinstance(config, NATConfig) else Isotropic
    return nnx.eval_shape(lambda: family(config, rngs=nnx.Rngs(0)))


def find_model(state: StateDict, model: str | None) -> tuple[str | None, Config]:
    """Name and config of the model that weights are of.

    Args:
      state: the weights.
      model: the name, where the caller knows it.

    Raises:
      WeightsError: they are of none, or may be of several.
    """
    if model is not None:
        return model, adapt(model_config(_known(model)), state)
    config = read_config(state.metadata)
    if config is not None:
        if config_structure(config) != source_structure(state):
            raise WeightsError(f"{state.where}: arrays and config in the file are of two models")
        return read_model(state.metadata), config
    names = candidates(state)
    if len(names) == 1:
        return names[0], adapt(model_config(names[0]), state)
    structure = source_structure(state)
    if not names:
        raise WeightsError(
            f"{state.where} is of no published model ({structure}); natjax.load_weights loads it"
            " into a model of your own"
        )
    options = " or ".join(f"model={name!r}" for name in names)
    raise WeightsError(
        f"{state.where} may be {' or '.join(names)}, whose arrays have the same shapes; pass"
        f" {options} (--model)"
    )
