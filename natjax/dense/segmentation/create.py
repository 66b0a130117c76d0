"""Segmentors by name."""

from __future__ import annotations

from typing import Unpack

from natjax.dense.create import DenseOptions, create_dense
from natjax.dense.segmentation.upernet import UPerNet, UPerNetConfig
from natjax.registry import find_config


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
    dropout: float | None = None,
    **options: Unpack[DenseOptions],
) -> UPerNet:
    """Make a segmentor, with freshly drawn parameters or with the weights of a file.

    ``model(images)`` gives logits ``[B, H, W, classes]`` of every pixel of normalised images
    ``[B, H, W, C]`` of any size. `natjax.dense.segmentation.inference` makes class probabilities of
    them as the papers do, `natjax.dense.segmentation.loss` the loss of ``model.heads(...)``.

    Args:
      name: one of ``natjax.list_models(kind="segmentor")``.
      num_classes: classes of a pixel; None is as published (150, ADE20K's).
      dropout: rate at which the heads drop whole channels; None is as published.
      **options: dilations, kernel_size, drop_path and in_channels of the backbone; dtype,
        param_dtype, remat and implementation of the computation; weights, ema, drop_head,
        resize_rpb and rngs, which fill the model: `natjax.dense.create.DenseOptions`.

    Raises:
      TypeError: an option that there is not.
      ValueError: an unknown name, an argument that breaks its rule, or options that conflict with
        those in the weights.
      WeightsError: the weights cannot be found or read, or do not fit.

    >>> import natjax
    >>> from flax import nnx
    >>> model = nnx.eval_shape(
    ...     lambda: natjax.create_segmentor("upernet_nat_mini", num_classes=21, rngs=nnx.Rngs(0))
    ... )
    >>> model.decode_head.conv_seg.kernel.shape
    (1, 1, 512, 21)
    """
    changes = {"num_classes": num_classes, "dropout": dropout}
    return create_dense(name, "segmentor", changes, **options)
