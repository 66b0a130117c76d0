"""Multiply-adds of the detectors, counted as in the papers.

As `natjax.backbones.flops`, and: BatchNorm in evaluation is two per element, enlarging a map one
per element; ReLU, addition, suppression and RoIAlign are free; the box heads see 1000 regions, the
mask heads 100. By these rules the published numbers of all detectors come out.
"""

from __future__ import annotations

import math

from natjax.backbones.flops import Size, count_flops, level_sizes
from natjax.backbones.nat import NATConfig
from natjax.dense.detection.config import MaskRCNNConfig
from natjax.dense.detection.heads import BOX_BINS, MASK_BINS

_BOX_REGIONS, _MASK_REGIONS = 1000, 100


def count_detector_flops(config: MaskRCNNConfig, image: Size) -> int:
    """Multiply-adds of the detections in one image.

    Args:
      config: the shape of the model.
      image: height and width.

    Raises:
      ValueError: the config names no backbone of natjax.
    """
    if not isinstance(config.backbone, NATConfig):
        raise ValueError(f"config.backbone must be a NATConfig; got {config.backbone!r}")
    sizes = level_sizes(config.backbone, image)
    heads = _BOX_REGIONS * _box_head(config) + _MASK_REGIONS * _mask_head(config)
    return (
        count_flops(config.backbone, image)
        + _pyramid(config, sizes)
        + _proposals(config, [*sizes, _half(sizes[-1])])
        + len(config.stages) * heads
    )


def _pyramid(config: MaskRCNNConfig, sizes: list[Size]) -> int:
    channels = config.channels
    convs = sum(
        math.prod(size) * channels * (inputs + 9 * channels)
        for inputs, size in zip(config.levels, sizes, strict=True)
    )
    return convs + sum(math.prod(size) * channels for size in sizes[:-1])


def _proposals(config: MaskRCNNConfig, sizes: list[Size]) -> int:
    outputs = 5 * len(config.rpn.ratios)  # a score and four deltas an anchor
    cell = config.channels * (9 * config.channels + outputs)
    return sum(math.prod(size) * cell for size in sizes)


def _box_head(config: MaskRCNNConfig) -> int:
    """Of one region."""
    head, channels, positions = config.box_head, config.channels, BOX_BINS**2
    total = 0
    for _ in range(head.convs):
        total += positions * head.conv_channels * (9 * channels + 2)
        channels = head.conv_channels
    inputs = channels * positions
    for _ in range(head.linears):
        total += inputs * head.linear_channels
        inputs = head.linear_channels
    return total + inputs * (5 * config.num_classes + 1)


def _mask_head(config: MaskRCNNConfig) -> int:
    """Of one region."""
    channels, positions = config.mask_channels, MASK_BINS**2
    convs = positions * 9 * channels * (config.channels + 3 * channels)
    return convs + positions * 4 * channels * (channels + config.num_classes)


def _half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)
