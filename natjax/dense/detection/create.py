"""Detectors by name."""

from __future__ import annotations

from typing import Unpack

from natjax.dense.create import DenseOptions, create_dense
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.mask_rcnn import MaskRCNN
from natjax.registry import find_config


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
    max_detections: int | None = None,
    score_threshold: float | None = None,
    **options: Unpack[DenseOptions],
) -> MaskRCNN:
    """Make a detector, with freshly drawn parameters or with the weights of a file.

    ``model(images, sizes)`` finds objects with boxes, classes, scores and masks in normalised
    images ``[B, H, W, C]``, zero padded to the same size. ``model.loss(...)`` is what training
    minimises. Other settings are fields of its config: change that of `detector_config` by
    `dataclasses.replace`, and make a `MaskRCNN` of it.

    Args:
      name: one of ``natjax.list_models(kind="detector")``.
      num_classes: classes of objects; None is as published (80, COCO's).
      max_detections: objects of an image at most; None is 100.
      score_threshold: the score of an object exceeds it; None is 0.05.
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
    ...     lambda: natjax.create_detector("mask_rcnn_nat_mini", num_classes=5, rngs=nnx.Rngs(0))
    ... )
    >>> model.roi_head.bbox_head.fc_cls.kernel.shape  # background is a class
    (1024, 6)
    """
    changes = {
        "num_classes": num_classes,
        "max_detections": max_detections,
        "score_threshold": score_threshold,
    }
    return create_dense(name, "detector", changes, **options)
