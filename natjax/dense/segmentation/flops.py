"""Multiply-adds of the segmentors, counted as in the papers.

As `natjax.backbones.flops`, and: BatchNorm in evaluation is two per element, bilinear interpolation
four per element of the result; ReLU, pooling, concatenation and addition are free. By these rules
the published numbers of all UPerNets come out.
"""

from __future__ import annotations

import math

from natjax.backbones.flops import Size, count_flops, level_sizes
from natjax.dense.segmentation.upernet import UPerNetConfig


def count_upernet_flops(config: UPerNetConfig, image: Size) -> int:
    """Multiply-adds of the logits of one image's pixels, without the auxiliary head.

    Args:
      config: the shape of the model.
      image: height and width.
    """
    sizes, channels = level_sizes(config.backbone, image), config.channels
    finest = math.prod(sizes[0])
    return (
        count_flops(config.backbone, image)
        + _pooling(config, sizes[-1])
        + _pyramid(config, sizes)
        + sum(_resize(size, sizes[0], channels) for size in sizes[1:])
        + _conv_module(3, channels * len(sizes), channels, sizes[0])
        + finest * channels * config.num_classes
        + _resize(sizes[0], image, config.num_classes)
    )


def _pooling(config: UPerNetConfig, size: Size) -> int:
    """Pyramid pooling of the last map, and the convolution that joins it to the map."""
    inputs, channels = config.levels[-1], config.channels
    branches = sum(
        _conv_module(1, inputs, channels, (cells, cells)) + _resize((cells, cells), size, channels)
        for cells in config.pool_scales
    )
    joined = inputs + channels * len(config.pool_scales)
    return branches + _conv_module(3, joined, channels, size)


def _pyramid(config: UPerNetConfig, sizes: list[Size]) -> int:
    """The feature pyramid below the last map."""
    channels = config.channels
    return sum(
        _conv_module(1, inputs, channels, size)
        + _resize(coarser, size, channels)
        + _conv_module(3, channels, channels, size)
        for inputs, size, coarser in zip(config.levels, sizes, sizes[1:], strict=False)
    )


def _conv_module(kernel_size: int, inputs: int, outputs: int, size: Size) -> int:
    return math.prod(size) * outputs * (kernel_size**2 * inputs + 2)


def _resize(old: Size, new: Size, channels: int) -> int:
    return 0 if old == new else 4 * math.prod(new) * channels
