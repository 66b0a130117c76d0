"""Segmentors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from natjax.dense.segmentation.upernet import UPerNet, UPerNetConfig
from natjax.kernels.api import Implementation
from natjax.nn.arguments import given
from natjax.nn.initial import initialise
from natjax.registry import find_config

if TYPE_CHECKING:
    from natjax.weights.load import Weights


def segmentor_config(name: str) -> UPerNetConfig:
    """The config of a segmentor as published.

    Raises:
      ValueError: no segmentor of that name; the message suggests near ones.
    """
    return find_config(name, "segmentor")


def create_segmentor(
    name: str,
    *,
    num_classes: int | None = None,
    dilations: Sequence[Sequence[int]] | None = None,
    kernel_size: int | None = None,
    drop_path: float | None = None,
    dropout: float | None = None,
    in_channels: int | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    implementation: Implementation | None = None,
    weights: Weights | None = None,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> UPerNet:
    """Make a segmentor, with freshly drawn parameters or with the weights of a file.

    ``model(images)`` gives logits ``[B, H, W, classes]`` of every pixel of normalised images
    ``[B, H, W, C]`` of any size. `natjax.dense.segmentation.inference` makes class probabilities of
    them as the papers do, `natjax.dense.segmentation.loss` the loss of ``model.heads(...)``.

    Args:
      name: one of ``natjax.list_models(kind="segmentor")``.
      num_classes: classes of a pixel; None is as published (150, ADE20K's).
      dilations: dilation of every block of the backbone, one sequence per level; None is as
        published. Parameters do not depend on it.
      kernel_size: attention window; None is as published.
      drop_path: stochastic depth rate of the last block; None is as published.
      dropout: rate at which the heads drop whole channels; None is as published.
      in_channels: channels of the images; None is 3.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; None is ``param_dtype``.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block of the backbone.
      implementation: of the attention op, as in `natjax.na2d`.
      weights: where to load all parameters and running statistics from: ``"ade20k"``, which is
        published, or what `natjax.load_weights` takes.
      drop_head: draw the classifiers of both heads instead of loading them, for another
        ``num_classes``.
      resize_rpb: resize loaded position biases to the model's window.
      rngs: stream ``params`` (or the default one) draws the parameters; needed unless all of them
        are loaded.

    Raises:
      ValueError: an unknown name, or an argument that breaks its rule.
      WeightsError: the weights cannot be found or read, or do not fit.

    >>> import natjax
    >>> from flax import nnx
    >>> model = nnx.eval_shape(
    ...     lambda: natjax.create_segmentor("upernet_nat_mini", num_classes=21, rngs=nnx.Rngs(0))
    ... )
    >>> model.decode_head.conv_seg.kernel.shape
    (1, 1, 512, 21)
    """
    if weights is None and rngs is None:
        raise ValueError("rngs must be given where weights are not")
    config = segmentor_config(name)
    backbone = {
        "dilations": dilations,
        "kernel_size": kernel_size,
        "drop_path": drop_path,
        "in_channels": in_channels,
    }
    config = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, **given(backbone)),
        **given({"num_classes": num_classes, "dropout": dropout}),
    )

    def build(rngs: nnx.Rngs) -> UPerNet:
        return UPerNet(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            implementation=implementation,
            rngs=rngs,
        )

    if weights is None:
        return initialise(build, rngs)
    from natjax.weights.load import build_loaded

    return build_loaded(
        build, weights, name=name, drop_head=drop_head, resize_rpb=resize_rpb, rngs=rngs
    )
