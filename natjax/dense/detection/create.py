"""Detectors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.mask_rcnn import MaskRCNN
from natjax.kernels.api import Implementation
from natjax.nn.arguments import given
from natjax.nn.initial import initialise
from natjax.registry import find_config
from natjax.weights.load import Weights, build_loaded


def detector_config(name: str) -> MaskRCNNConfig:
    """The config of a detector as published.

    Raises:
      ValueError: no detector of that name; the message suggests near ones.
    """
    return find_config(name, "detector")


def create_detector(
    name: str,
    *,
    num_classes: int | None = None,
    dilations: Sequence[Sequence[int]] | None = None,
    kernel_size: int | None = None,
    drop_path: float | None = None,
    in_channels: int | None = None,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    implementation: Implementation | None = None,
    weights: Weights | None = None,
    drop_head: bool = False,
    resize_rpb: bool = False,
    rngs: nnx.Rngs | None = None,
) -> MaskRCNN:
    """Make a detector, with freshly drawn parameters or with the weights of a file.

    ``model(images, sizes)`` finds objects with boxes, classes, scores and masks in normalised
    images ``[B, H, W, C]``, zero padded to the same size. ``model.loss(...)`` is what training
    minimises. Other settings are fields of its config: change that of `detector_config` by
    `dataclasses.replace`, and make a `MaskRCNN` of it.

    Args:
      name: one of ``natjax.list_models(kind="detector")``.
      num_classes: classes of objects; None is as published (80, COCO's).
      dilations: dilation of every block of the backbone, one sequence per level; None is as
        published. Parameters do not depend on it.
      kernel_size: attention window; None is as published.
      drop_path: stochastic depth rate of the last block; None is as published.
      in_channels: channels of the images; None is 3.
      max_detections: objects of an image at most; None is 100.
      score_threshold: the score of an object exceeds it; None is 0.05.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; None is ``param_dtype``. Boxes,
        scores and losses are float32 at least.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block of the backbone.
      implementation: of the attention op, as in `natjax.na2d`.
      weights: where to load all parameters from: ``"coco"``, the name of the published weights,
        URL, path or arrays, as for `natjax.load_weights`.
      drop_head: draw the layers that depend on the classes instead of loading them, for another
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
    ...     lambda: natjax.create_detector("mask_rcnn_nat_mini", num_classes=5, rngs=nnx.Rngs(0))
    ... )
    >>> model.roi_head.bbox_head.fc_cls.kernel.shape  # background is a class
    (1024, 6)
    """
    config = detector_config(name)
    backbone = {
        "dilations": dilations,
        "kernel_size": kernel_size,
        "drop_path": drop_path,
        "in_channels": in_channels,
    }
    changes = {
        "num_classes": num_classes,
        "max_detections": max_detections,
        "score_threshold": score_threshold,
    }
    config = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, **given(backbone)),
        **given(changes),
    )

    def build(rngs: nnx.Rngs) -> MaskRCNN:
        return MaskRCNN(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            implementation=implementation,
            rngs=rngs,
        )

    if weights is not None:
        return build_loaded(
            build, weights, name=name, drop_head=drop_head, resize_rpb=resize_rpb, rngs=rngs
        )
    if rngs is None:
        raise ValueError("rngs must be given where weights are not")
    return initialise(build, rngs)
