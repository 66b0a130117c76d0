"""Multiply-adds of the backbones, counted as in the papers.

A multiply-add is one; LayerNorm is five per element; neighborhood attention is its two products and
one per bias added; softmax, GELU, residuals and pooling are free; what is computed on padding
counts.
"""

from __future__ import annotations

import math

from natjax.backbones.isotropic import IsotropicConfig
from natjax.backbones.nat import NATConfig

Size = tuple[int, int]


def count_flops(config: NATConfig | IsotropicConfig, image: Size) -> int:
    """Multiply-adds of one image's logits, or of its maps where there is no classifier.

    Args:
      config: the shape of the model.
      image: height and width.

    Raises:
      ValueError: a size that a model with global attention cannot take.
    """
    if isinstance(config, NATConfig):
        return _hierarchical(config, image)
    return _isotropic(config, image)


def level_sizes(config: NATConfig | IsotropicConfig, image: Size) -> list[Size]:
    """Height and width of each map of the pyramid."""
    if isinstance(config, IsotropicConfig):
        return [_shrink(image, config.patch_size)]
    sizes = [_shrink(image, 4)]
    while len(sizes) < len(config.depths):
        sizes.append(_shrink(sizes[-1], 2))
    return sizes


def _hierarchical(config: NATConfig, image: Size) -> int:
    if config.overlapping:
        total, downsampler = _conv_tokenizer(config, image), _conv_downsampler
    else:
        total, downsampler = _patch_tokenizer(config, image, 4), _patch_merging
    sizes = level_sizes(config, image)
    for i, (channels, size) in enumerate(zip(config.channels, sizes, strict=True)):
        for dilation in config.dilations[i]:
            window = (config.kernel_size, dilation)
            total += _block(size, channels, config.num_heads[i], window, config.mlp_ratio)
        total += _norm(size, channels) * config.output_norms
        if i + 1 < len(sizes):
            total += downsampler(channels, sizes[i + 1])
    return total + _classifier(config, sizes[-1], config.channels[-1])


def _isotropic(config: IsotropicConfig, image: Size) -> int:
    (size,) = level_sizes(config, image)
    if config.kernel_size is None and size != (config.map_size, config.map_size):
        raise ValueError(
            f"image_size must give {config.map_size} x {config.map_size} patches of "
            f"{config.patch_size} for global attention; got {image}"
        )
    total = _patch_tokenizer(config, image, config.patch_size)
    for dilation in config.dilations:
        window = None if config.kernel_size is None else (config.kernel_size, dilation)
        total += _block(size, config.dim, config.num_heads, window, config.mlp_ratio)
    total += _norm(size, config.dim) * config.output_norms
    return total + _classifier(config, size, config.dim)


def _block(
    size: Size, channels: int, heads: int, window: tuple[int, int] | None, mlp_ratio: float
) -> int:
    tokens = math.prod(size)
    norms = 2 * _norm(size, channels)
    proj = tokens * channels**2
    mlp = 2 * tokens * channels * int(channels * mlp_ratio)
    return norms + _attention(size, channels, heads, window) + proj + mlp


def _attention(size: Size, channels: int, heads: int, window: tuple[int, int] | None) -> int:
    """The ``qkv`` layer and the op; ``window`` is kernel size and dilation, None is global."""
    if window is None:
        tokens = keys = math.prod(size)
        bias = 0  # an addition of whole matrices, which the papers' counter does not see
    else:
        kernel_size, dilation = window
        # Both run on the padded map.
        tokens = math.prod(max(n, kernel_size * dilation) for n in size)
        keys = kernel_size**2
        bias = tokens * heads * keys
    return 3 * tokens * channels**2 + 2 * tokens * keys * channels + bias


def _conv_tokenizer(config: NATConfig, image: Size) -> int:
    half, quarter, middle = _shrink(image, 2), _shrink(image, 4), config.dim // 2
    first = math.prod(half) * 9 * config.in_channels * middle
    second = math.prod(quarter) * 9 * middle * config.dim
    return first + second + _norm(quarter, config.dim)


def _patch_tokenizer(config: NATConfig | IsotropicConfig, image: Size, patch_size: int) -> int:
    size = _shrink(image, patch_size)
    weights = patch_size**2 * config.in_channels * config.dim
    return math.prod(size) * weights + _norm(size, config.dim)


def _conv_downsampler(channels: int, size: Size) -> int:
    return math.prod(size) * 9 * channels * 2 * channels + _norm(size, 2 * channels)


def _patch_merging(channels: int, size: Size) -> int:
    return math.prod(size) * 4 * channels * 2 * channels + _norm(size, 4 * channels)


def _classifier(config: NATConfig | IsotropicConfig, size: Size, channels: int) -> int:
    if config.output_norms and not config.num_classes:
        return 0
    return _norm(size, channels) + channels * config.num_classes


def _norm(size: Size, channels: int) -> int:
    """LayerNorm of a map."""
    return 5 * math.prod(size) * channels


def _shrink(size: Size, factor: int) -> Size:
    """A size divided, rounded up."""
    return -(-size[0] // factor), -(-size[1] // factor)
