"""Size and cost of a model, without running it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from flax import nnx

from natjax.backbones.isotropic import Isotropic, IsotropicConfig
from natjax.backbones.nat import NAT, NATConfig
from natjax.create import model_config
from natjax.kernels.checks import axis_ints

_Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelSummary:
    """Size and cost of a model.

    Attributes:
      name: of the model.
      parameters: number of scalar parameters.
      flops: multiply-adds of one image's forward pass, as in the papers.
      image_size: height and width that ``flops`` are for.
    """

    name: str
    parameters: int
    flops: int
    image_size: _Size


def model_summary(name: str, image_size: int | Sequence[int] | None = None) -> ModelSummary:
    """Parameters and FLOPs of a published model.

    FLOPs follow the papers: a multiply-add is one; LayerNorm is five per element; neighborhood
    attention is its two products and one per bias added; softmax, GELU, residuals and pooling are
    free; what is computed on padding counts.

    Args:
      name: one of `natjax.list_models`.
      image_size: height and width, or both at once; None is the model's own.

    Raises:
      ValueError: an unknown name, or a size that is not positive or that the model cannot take.

    >>> import natjax
    >>> summary = natjax.model_summary("nat_tiny")
    >>> summary.parameters, round(summary.flops / 1e9, 1)
    (27901582, 4.3)
    """
    config = model_config(name)
    size = _image_size(config.input_size if image_size is None else image_size)
    return ModelSummary(
        name=name,
        parameters=count_parameters(config),
        flops=count_flops(config, size),
        image_size=size,
    )


def count_parameters(config: NATConfig | IsotropicConfig) -> int:
    """Number of scalar parameters of the model of a config."""
    family = NAT if isinstance(config, NATConfig) else Isotropic
    abstract = nnx.eval_shape(lambda: family(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))


def count_flops(config: NATConfig | IsotropicConfig, image_size: _Size) -> int:
    """Multiply-adds of one image's logits, counted as in `model_summary`."""
    if isinstance(config, NATConfig):
        return _hierarchical(config, image_size)
    return _isotropic(config, image_size)


def _hierarchical(config: NATConfig, image: _Size) -> int:
    if config.overlapping:
        total, downsampler = _conv_tokenizer(config, image), _conv_downsampler
    else:
        total, downsampler = _patch_tokenizer(config, image, 4), _patch_merging
    size = _shrink(image, 4)
    last = len(config.depths) - 1
    for i, channels in enumerate(config.channels):
        for dilation in config.dilations[i]:
            window = (config.kernel_size, dilation)
            total += _block(size, channels, config.num_heads[i], window, config.mlp_ratio)
        total += _norm(size, channels) * config.output_norms
        if i < last:
            size = _shrink(size, 2)
            total += downsampler(channels, size)
    return total + _classifier(config, size, config.channels[-1])


def _isotropic(config: IsotropicConfig, image: _Size) -> int:
    size = _shrink(image, config.patch_size)
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
    size: _Size, channels: int, heads: int, window: tuple[int, int] | None, mlp_ratio: float
) -> int:
    tokens = math.prod(size)
    norms = 2 * _norm(size, channels)
    proj = tokens * channels**2
    mlp = 2 * tokens * channels * int(channels * mlp_ratio)
    return norms + _attention(size, channels, heads, window) + proj + mlp


def _attention(size: _Size, channels: int, heads: int, window: tuple[int, int] | None) -> int:
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


def _conv_tokenizer(config: NATConfig, image: _Size) -> int:
    half, quarter, middle = _shrink(image, 2), _shrink(image, 4), config.dim // 2
    first = math.prod(half) * 9 * config.in_channels * middle
    second = math.prod(quarter) * 9 * middle * config.dim
    return first + second + _norm(quarter, config.dim)


def _patch_tokenizer(config: NATConfig | IsotropicConfig, image: _Size, patch_size: int) -> int:
    size = _shrink(image, patch_size)
    weights = patch_size**2 * config.in_channels * config.dim
    return math.prod(size) * weights + _norm(size, config.dim)


def _conv_downsampler(channels: int, size: _Size) -> int:
    return math.prod(size) * 9 * channels * 2 * channels + _norm(size, 2 * channels)


def _patch_merging(channels: int, size: _Size) -> int:
    return math.prod(size) * 4 * channels * 2 * channels + _norm(size, 4 * channels)


def _classifier(config: NATConfig | IsotropicConfig, size: _Size, channels: int) -> int:
    if config.output_norms and not config.num_classes:
        return 0
    return _norm(size, channels) + channels * config.num_classes


def _norm(size: _Size, channels: int) -> int:
    return 5 * math.prod(size) * channels


def _shrink(size: _Size, factor: int) -> _Size:
    return -(-size[0] // factor), -(-size[1] // factor)


def _image_size(image_size: int | Sequence[int]) -> _Size:
    """Height and width from one int or two."""
    height, width = axis_ints("image_size", image_size, 2)
    return height, width
