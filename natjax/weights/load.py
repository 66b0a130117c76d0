"""Weights into models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.backbones.base import VisionModel
from natjax.backbones.isotropic import Isotropic
from natjax.backbones.nat import NAT
from natjax.weights.files import read_file
from natjax.weights.fit import MismatchError, compare, take_arrays
from natjax.weights.layouts import Shape
from natjax.weights.report import LoadReport, make_report
from natjax.weights.resolve import resolve
from natjax.weights.state_dict import StateDict, find_state_dict
from natjax.weights.structure import config_names


def load_weights(
    model: VisionModel,
    weights: str | os.PathLike[str],
    *,
    strict: bool = True,
    ema: bool = False,
    drop_head: bool = False,
    resize_rpb: bool = False,
    lenient: bool = False,
) -> LoadReport:
    """Load weights into a model, all or nothing.

    Read are PyTorch files and safetensors, with names of the official project (bare, inside a
    training checkpoint, or as the backbone of a detector or segmentor), of Hugging Face's NAT and
    DiNAT, or of natjax; which of them is seen from the content. Nothing in a file is executed.
    Values are cast to the dtype of the model's parameters and take their sharding.

    Args:
      model: changed in place, and only if everything fits.
      weights: path, URL, ``"hf://org/name"``, or the name of published weights of this model, such
        as ``"imagenet1k"`` (`natjax.weights.published`).
      strict: whether every parameter must be in the file and every array of the file in the model,
        in the right shape. Otherwise the report lists what was skipped.
      ema: take the averaged weights of a training checkpoint.
      drop_head: leave the classifier as it is in the model, with the final norm and the output
        norms where only one of file and model has them. For another number of classes.
      resize_rpb: resize position biases of another size, as for another window.
      lenient: read PyTorch files that hold other objects beside arrays, which are passed over.

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
    natjax.weights.errors.WeightsError: there is no file nat_tiny.pth
    """
    state = open_weights(weights, models=config_names(model.config), ema=ema, lenient=lenient)
    return _load(model, state, strict=strict, drop_head=drop_head, resize_rpb=resize_rpb)


def _load(model: VisionModel, state: StateDict, **how: bool) -> LoadReport:
    params = named_params(model)
    shapes = {name: tuple(param.shape) for name, param in params.items()}
    arrays, report = fit_arrays(state, shapes, **how)
    ready = {}
    for name in list(arrays):
        ready[name] = _like(arrays.pop(name), params[name].get_value())
    for name, value in ready.items():
        params[name].set_value(value)
    return report


def build_loaded(
    build: Callable[[nnx.Rngs], NAT | Isotropic],
    weights: str | os.PathLike[str],
    *,
    name: str,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> NAT | Isotropic:
    """Make a model of loaded weights; only what is not loaded is drawn.

    Args:
      build: makes the model.
      weights: as for `load_weights`.
      name: of the model.
      drop_head: as for `load_weights`.
      resize_rpb: as for `load_weights`.
      rngs: draws what is not loaded.

    Raises:
      ValueError: something is to be drawn and there are no rngs.
      WeightsError: as for `load_weights`.
    """
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if drop_head and rngs is None:
        raise ValueError("rngs must be given with drop_head, to draw the classifier")
    state = open_weights(weights, models=[name])
    _load(model, state, drop_head=drop_head, resize_rpb=resize_rpb)
    params = named_params(model)
    empty = {n for n, p in params.items() if isinstance(p.get_value(), jax.ShapeDtypeStruct)}
    if empty:

        def draw(key: jax.Array) -> dict[str, jax.Array]:
            drawn = named_params(build(nnx.Rngs(key)))
            return {name: drawn[name].get_value() for name in empty}

        for path, value in jax.jit(draw)(rngs.params()).items():
            params[path].set_value(value)
    return model


def open_weights(
    weights: str | os.PathLike[str],
    *,
    models: list[str] | None = None,
    ema: bool = False,
    lenient: bool = False,
) -> StateDict:
    """Find, read and recognise weights.

    Args:
      weights: as for `load_weights`.
      models: names of the models that they may be for, which say what published weights mean.
      ema: take the averaged weights.
      lenient: pass over objects that are no arrays.
    """
    return find_state_dict(read_file(resolve(weights, models or []), lenient=lenient), ema=ema)


def fit_arrays(
    state: StateDict,
    shapes: Mapping[str, Shape],
    *,
    strict: bool = True,
    drop_head: bool = False,
    resize_rpb: bool = False,
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Our arrays by name from what a file holds, in the file's dtypes.

    Args:
      state: the weights, which are taken out of it.
      shapes: of the model's parameters.
      strict: as for `load_weights`, as the other arguments.
      drop_head: leave the classifier out.
      resize_rpb: resize position biases.

    Raises:
      WeightsError: they do not fit.
    """
    fit = compare(state, shapes, drop_head=drop_head, resize_bias=resize_rpb)
    if fit.faults and (strict or not fit.bindings):
        raise MismatchError(state, fit)
    report = make_report(state, fit)
    return dict(take_arrays(state, fit, shapes)), report


def named_params(model: nnx.Module) -> dict[str, nnx.Param]:
    """Parameters by dotted path, such as ``levels.0.blocks.1.attn.qkv.kernel``."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): param for path, param in flat}


def _like(array: np.ndarray, old: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The array on the devices of the old value, in its dtype; never a view of the file."""
    value = np.asarray(array, old.dtype)
    sharding = getattr(old, "sharding", None)
    if sharding is None:
        return jnp.array(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda part: np.array(value[part]))
