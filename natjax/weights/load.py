"""Weights into models."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.backbones.names import BACKBONE
from natjax.nn.position_bias import resize_rpb as resize_table
from natjax.registry import Config
from natjax.weights.comparison import LoadReport, MismatchError, compare
from natjax.weights.formats import SourceFile, read_file
from natjax.weights.names import Naming, Shape, namings_of
from natjax.weights.published import resolve
from natjax.weights.state_dict import StateDict, find_state_dict
from natjax.weights.structure import (
    backbone_of,
    config_names,
    config_of,
    config_structure,
    stated_model,
)
from natjax.weights.untrusted import WeightsError

Weights = str | os.PathLike[str] | Mapping[str, np.ndarray | jax.Array]


def load_weights(
    model: nnx.Module,
    weights: Weights,
    *,
    strict: bool = True,
    ema: bool = False,
    drop_head: bool = False,
    resize_rpb: bool = False,
) -> LoadReport:
    """Load weights into a model, all or nothing.

    Read are PyTorch files and safetensors, with names of the official project (bare, inside a
    training checkpoint, or as the backbone of a detector or segmentor), of Hugging Face's NAT and
    DiNAT, or of natjax; which of them is seen from the content. Nothing in a file is executed.
    Values are cast to the dtype of the model's parameters and take their sharding.

    Args:
      model: of natjax, or a module that offers its names (`natjax.weights.names.namings_of`);
        changed in place, and only if everything fits.
      weights: path, URL, ``"hf://org/name"`` (``@revision`` may follow), the name of published
        weights of this model, such as ``"imagenet1k"`` (`natjax.weights.published`), or arrays by
        name.
      strict: whether every parameter must be in the file and every array of the file in the model,
        in the right shape, and the dilations those that natjax wrote into the file, if it did.
        Otherwise the report lists what was skipped.
      ema: take the averaged weights of a training checkpoint.
      drop_head: leave the classifier as it is in the model, with the final norm and the output
        norms where only one of file and model has them. For another number of classes.
      resize_rpb: resize position biases of another size, as for another window.

    Returns:
      What was loaded and what was not.

    Raises:
      WeightsError: the weights cannot be found or read, or do not fit; then nothing is loaded.

    >>> import natjax
    >>> from flax import nnx
    >>> config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_classes=5)
    >>> model = nnx.eval_shape(lambda: natjax.NAT(config, rngs=nnx.Rngs(0)))
    >>> natjax.load_weights(model, "nat_tiny.pth")
    Traceback (most recent call last):
    ...
    natjax.weights.untrusted.WeightsError: there is no file nat_tiny.pth
    """
    namings = namings_of(model).values()
    state = open_weights(weights, models=published_names(model), ema=ema, namings=namings)
    config = config_of(model)
    if strict and config is not None:
        _check_dilations(config, state)
    return _load(model, state, strict=strict, drop_head=drop_head, resize_rpb=resize_rpb)


def _check_dilations(config: Config, state: StateDict) -> None:
    """Dilations are in no array: only the metadata that natjax writes can tell of another model."""
    _, stated = stated_model(state)
    if stated is None or config_structure(stated) != config_structure(config):
        return  # what differs is in the arrays, too
    found, wanted = backbone_of(stated).dilations, backbone_of(config).dilations
    if found != wanted:
        raise WeightsError(
            f"{state.where} holds weights of dilations {found}, and the model has {wanted}; load"
            " them into a model of theirs, and change it (or its backbone) by with_dilations(...)"
            " afterwards, or pass strict=False"
        )


def published_names(model: nnx.Module) -> list[str]:
    """Names of the published models that a model may be.

    Args:
      model: of natjax; or any module, which may offer them by a method ``published_names()``.
    """
    offered, config = getattr(model, "published_names", None), config_of(model)
    if offered is not None:
        return list(offered())
    return [] if config is None else config_names(config)


def _load(model: nnx.Module, state: StateDict, **options: bool) -> LoadReport:
    params = named_params(model)
    shapes = {name: tuple(param.shape) for name, param in params.items()}
    integers = [name for name, param in params.items() if jnp.issubdtype(param.dtype, jnp.integer)]
    arrays, report = fit_arrays(state, shapes, integers=integers, **options)
    ready = {}
    for name in list(arrays):
        ready[name] = _like(arrays.pop(name), params[name].get_value())
    for name, value in ready.items():
        params[name].set_value(value)
    return report


def build_from[Model: nnx.Module](
    build: Callable[[nnx.Rngs], Model],
    state: StateDict,
    *,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> Model:
    """Make a model of weights that are open; only what is not loaded is drawn.

    Args:
      build: makes the model.
      state: the weights, which are taken out of it.
      drop_head: as for `load_weights`.
      resize_rpb: as for `load_weights`.
      rngs: draws what is not loaded.

    Raises:
      ValueError: something is to be drawn and there are no rngs.
      WeightsError: the weights do not fit.
    """
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    _load(model, state, drop_head=drop_head, resize_rpb=resize_rpb)
    params = named_params(model)
    empty = [n for n, p in params.items() if isinstance(p.get_value(), jax.ShapeDtypeStruct)]
    if empty and rngs is None:
        raise ValueError(
            f"rngs must be given to draw what is not loaded from {state.where}: {', '.join(empty)}"
        )
    if empty:

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            drawn = named_params(build(nnx.Rngs(key)))
            return {path: drawn[path].get_value() for path in empty}

        for path, value in jax.jit(draw)(rngs.params()).items():
            params[path].set_value(value)
    return model


def open_weights(
    weights: Weights,
    *,
    models: list[str] | None = None,
    ema: bool = False,
    namings: Iterable[Naming] = BACKBONE,
) -> StateDict:
    """Find, read and recognise weights.

    Args:
      weights: as for `load_weights`.
      models: names of the models that they may be for, which say what published weights mean.
      ema: take the averaged weights.
      namings: tables of the names that the keys may be.

    Raises:
      WeightsError: the weights cannot be found or read, or have other names.
    """
    if isinstance(weights, Mapping):
        arrays = {key: _host(value) for key, value in weights.items()}
        file = SourceFile(Path("the given arrays"), "arrays", arrays)
    else:
        file = read_file(resolve(weights, models or []))
    return find_state_dict(file, ema=ema, namings=namings)


def _host(value: object) -> object:
    """An array of the caller's on this host; what is none is refused later, by its key."""
    return np.asarray(value) if isinstance(value, jax.Array) else value


def fit_arrays(
    state: StateDict,
    shapes: Mapping[str, Shape],
    *,
    integers: Collection[str] = (),
    strict: bool = True,
    drop_head: bool = False,
    resize_rpb: bool = False,
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Our arrays by name from what a file holds, in the file's dtypes.

    Args:
      state: the weights, which are taken out of it.
      shapes: of the model's parameters.
      integers: names of those that are integers.
      strict: as for `load_weights`, as the other arguments.
      drop_head: leave the classifier out.
      resize_rpb: resize position biases.

    Raises:
      WeightsError: they do not fit.
    """
    report = compare(state, shapes, integers=integers, drop_head=drop_head, resize_rpb=resize_rpb)
    if report.faults and (strict or not report.mapped):
        raise MismatchError(state, report)
    return dict(_take_arrays(state, report, shapes)), report


def _take_arrays(
    source: StateDict, report: LoadReport, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, np.ndarray]]:
    """Our name and array of all that fits; the source forgets what has been taken."""
    resized = set(report.resized)
    for binding in report.mapped:
        theirs = tuple(source.arrays.pop(key) for key in binding.theirs)
        is_resized = not resized.isdisjoint(binding.theirs)
        for name, array in zip(binding.ours, binding.layout.to_ours(theirs), strict=True):
            rows, columns = shapes[name][-2:] if is_resized else (0, 0)
            yield name, resize_table(array, (rows, columns)) if is_resized else array


def named_params(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Parameters and running statistics by path, as ``levels.0.blocks.1.attn.qkv.kernel``."""
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): param for path, param in flat}


def _like(array: np.ndarray, old: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The array on the devices of the old value, in its dtype; never a view of the file."""
    value = np.asarray(array, old.dtype)
    sharding = getattr(old, "sharding", None)
    if sharding is None:
        return jnp.array(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda part: np.array(value[part]))
