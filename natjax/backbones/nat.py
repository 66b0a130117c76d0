"""The hierarchical models: NAT, DiNAT and DiNAT_s.

References:
  Hassani et al., *Neighborhood Attention Transformer*, CVPR 2023 (NAT);
  Hassani and Shi, *Dilated Neighborhood Attention Transformer*, 2022 (DiNAT, DiNAT_s).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from natjax.backbones.base import ModelConfig, VisionModel
from natjax.kernels.api import Implementation
from natjax.nn import arguments
from natjax.nn.block import Block, drop_path_rates
from natjax.nn.layers import ConvDownsampler, ConvTokenizer, PatchMerging, PatchTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class NATConfig(ModelConfig):
    """Shape of a NAT, DiNAT or DiNAT_s.

    Attributes:
      dim: channels of the first level; each further level has twice as many.
      depths: blocks in each level.
      num_heads: heads in each level.
      kernel_size: attention window.
      dilations: dilation of every block, one sequence per level; empty is 1 everywhere (NAT).
      layer_scale: initial value of the learned factors on the residual branches; None for none.
      overlapping: tokenizer and downsamplers are 3x3 convolutions of stride 2 (NAT, DiNAT);
        otherwise disjoint patches, as in Swin (DiNAT_s).
    """

    dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] = ()
    layer_scale: float | None = None
    overlapping: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.check_size("dim", self.dim)
        arguments.check_size("kernel_size", self.kernel_size)
        if self.overlapping and self.dim % 2:
            raise ValueError(f"dim must be even for an overlapping tokenizer; got {self.dim}")
        depths = arguments.check_sizes("depths", self.depths, None, "level")
        heads = arguments.check_sizes("num_heads", self.num_heads, len(depths), "level")
        dilations = _check_dilations(self.dilations, depths)
        self._set(depths=depths, num_heads=heads, dilations=dilations)
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            arguments.check_heads(channels, heads)
        self._set_outputs()

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.dim * 2**i for i in range(len(self.depths)))

    @property
    def reductions(self) -> tuple[int, ...]:
        """Pixels along each axis that a token of each level stands for: 4, 8, 16, ..."""
        return tuple(4 * 2**i for i in range(len(self.depths)))

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and dilation of every block, from the first."""
        return tuple((self.kernel_size, d) for level in self.dilations for d in level)


def _check_dilations(
    dilations: Sequence[Sequence[int]], depths: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    if not isinstance(dilations, Sequence) or len(dilations) not in (0, len(depths)):
        raise ValueError(
            f"dilations must hold {len(depths)} sequences (one per level); got {dilations!r}"
        )
    if not dilations:
        return tuple((1,) * depth for depth in depths)
    return tuple(
        arguments.check_sizes(f"dilations[{i}]", level, depth, "block")
        for i, (level, depth) in enumerate(zip(dilations, depths, strict=True))
    )


class Level(nnx.Module):
    """Blocks at one resolution, and the downsampler to the next.

    Args:
      blocks: the blocks, in their order.
      downsample: makes the first map of the next level; None in the last one.
    """

    def __init__(self, blocks: list[Block], downsample: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.downsample = downsample


class NAT(VisionModel):
    """NAT, DiNAT or DiNAT_s, as its config says.

    Tokenizer, levels of blocks with a downsampler in between, norm, mean over positions, linear
    head. The levels are the attribute ``levels`` (NAT, DiNAT) or ``layers`` (DiNAT_s), as in the
    published state dicts; ``blocks()`` has the blocks of any model.

    Args:
      config: the shape of the model.
      dtype: dtype of matrix products, convolutions and attention, such as ``jnp.bfloat16``; None
        is ``param_dtype``. Residual stream, norms, LayerScale, pooling and classifier are in
        float32 whatever it is (float64 where it is float64), and so are features and logits.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: stream ``params`` (or the default one) draws the initial parameters.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from natjax import NAT, NATConfig
    >>> config = NATConfig(dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=5)
    >>> model = NAT(config, rngs=nnx.Rngs(0))
    >>> images = jnp.ones((2, 24, 17, 3))
    >>> model(images).shape, [x.shape for x in model.features(images)]
    ((2, 5), [(2, 6, 5, 8), (2, 3, 3, 16)])
    """

    def __init__(
        self,
        config: NATConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            implementation=implementation,
            rngs=rngs,
        )

    def _add_levels(
        self,
        *,
        implementation: Implementation | None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        config = self.config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.overlapping:
            self.patch_embed = ConvTokenizer(config.in_channels, config.dim, **options)
        else:
            self.patch_embed = PatchTokenizer(config.in_channels, config.dim, 4, **options)
        levels = nnx.List(_make_levels(config, implementation=implementation, **options))
        if config.overlapping:
            self.levels = levels
        else:
            self.layers = levels

    def _levels(self) -> list[tuple[list[Block], nnx.Module | None]]:
        levels = self.levels if self.config.overlapping else self.layers
        return [(list(level.blocks), level.downsample) for level in levels]


def _make_levels(
    config: NATConfig,
    *,
    implementation: Implementation | None,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> list[Level]:
    """All levels, from the first."""
    options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    rates = iter(drop_path_rates(config.drop_path, sum(config.depths)))
    downsampler = ConvDownsampler if config.overlapping else PatchMerging
    levels = []
    for i, (channels, heads) in enumerate(zip(config.channels, config.num_heads, strict=True)):
        blocks = [
            Block(
                channels,
                heads,
                config.kernel_size,
                dilation,
                mlp_ratio=config.mlp_ratio,
                drop_path_rate=next(rates),
                dropout=config.dropout,
                attn_dropout=config.attn_dropout,
                layer_scale=config.layer_scale,
                implementation=implementation,
                **options,
            )
            for dilation in config.dilations[i]
        ]
        is_last = i == len(config.depths) - 1
        levels.append(Level(blocks, None if is_last else downsampler(channels, **options)))
    return levels
