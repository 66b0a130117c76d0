"""What making a segmentor and making a detector have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from flax import nnx
from jax.typing import DTypeLike

from natjax.create import config_of_file
from natjax.kernels.api import Implementation
from natjax.nn.arguments import given
from natjax.nn.initial import initialise
from natjax.registry import FAMILIES, Config, Kind, find_config
from natjax.weights.load import Weights, build_from, open_weights
from natjax.weights.names import by_name
from natjax.weights.structure import with_backbone


class DenseOptions(TypedDict, total=False):
    """Options of `natjax.create_segmentor` and of `natjax.create_detector`.

    What is left open, or None, is as in the file of the weights where natjax wrote it, or else as
    published.

    Attributes:
      dilations: dilation of every block of the backbone, one sequence per level. Parameters do not
        depend on it.
      kernel_size: attention window.
      drop_path: stochastic depth rate of the last block.
      in_channels: channels of the images.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; None is ``param_dtype``. Logits,
        boxes, scores and losses are float32 at least.
      param_dtype: dtype of the parameters, float32 where left open.
      remat: whether the backward pass recomputes each block of the backbone.
      implementation: of the attention op, as in `natjax.na2d`.
      weights: where to load all parameters and running statistics from: the name of published
        weights (``"ade20k"`` of segmentors, ``"coco"`` of detectors), URL, path or arrays, as for
        `natjax.load_weights`.
      ema: take the averaged weights of a training checkpoint.
      drop_head: draw the layers that depend on the classes instead of loading them, for another
        ``num_classes``.
      resize_rpb: resize loaded position biases to the model's window.
      rngs: stream ``params`` (or the default one) draws the parameters; needed unless all of them
        are loaded.
    """

    dilations: Sequence[Sequence[int]] | None
    kernel_size: int | None
    drop_path: float | None
    in_channels: int | None
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    remat: bool
    implementation: Implementation | None
    weights: Weights | None
    ema: bool
    drop_head: bool
    resize_rpb: bool
    rngs: nnx.Rngs | None


_OF_THE_BACKBONE = ("dilations", "kernel_size", "drop_path", "in_channels")
_OF_THE_COMPUTATION = ("dtype", "param_dtype", "remat", "implementation")


def create_dense(
    name: str, kind: Kind, changes: Mapping[str, Any], **options: Unpack[DenseOptions]
) -> Any:
    """Make a segmentor or detector.

    Args:
      name: of the model.
      kind: of the model.
      changes: fields of its config that its kind alone has; None leaves one as it is.
      **options: of `DenseOptions`.

    Raises:
      TypeError: an option that there is not.
      ValueError: an unknown name, an argument that breaks its rule, or options that conflict with
        those in the weights.
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    for option in options:
        if option not in DenseOptions.__optional_keys__:
            known = ", ".join((*changes, *DenseOptions.__annotations__))
            raise TypeError(f"there is no option {option!r} of a {kind}; there are {known}")
    config = find_config(name, kind)
    asked = given({option: options.get(option) for option in _OF_THE_BACKBONE})
    computation = {x: value for x, value in options.items() if x in _OF_THE_COMPUTATION}

    def build(config: Config, rngs: nnx.Rngs) -> nnx.Module:
        config = dataclasses.replace(with_backbone(config, asked), **given(dict(changes)))
        return FAMILIES[type(config)](config, **computation, rngs=rngs)

    weights, rngs = options.get("weights"), options.get("rngs")
    if weights is None:
        if rngs is None:
            raise ValueError("rngs must be given where weights are not")
        return initialise(lambda rngs: build(config, rngs), rngs)
    state = open_weights(
        weights,
        models=[name],
        ema=options.get("ema", False),
        namings=by_name(config.namings()).values(),
    )
    resize_rpb = options.get("resize_rpb", False)
    config = config_of_file(name, config, state, asked, resize_rpb=resize_rpb)
    return build_from(
        lambda rngs: build(config, rngs),
        state,
        drop_head=options.get("drop_head", False),
        resize_rpb=resize_rpb,
        rngs=rngs,
    )
