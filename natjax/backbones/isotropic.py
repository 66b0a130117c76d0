"""The isotropic models: NAT, DiNAT and ViT with relative position bias, on one map size.

Reference:
  Hassani and Shi, *Dilated Neighborhood Attention Transformer*, 2022 (isotropic variants).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from natjax.backbones.base import ModelConfig, VisionModel
from natjax.kernels.api import Implementation
from natjax.nn import arguments
from natjax.nn.block import Block, drop_path_rates
from natjax.nn.layers import PatchTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsotropicConfig(ModelConfig):
    """Shape of an isotropic model.

    Attributes:
      dim: channels.
      depth: blocks.
      num_heads: heads.
      kernel_size: attention window; None is global attention (ViT), whose position bias fits one
        map size only.
      dilations: dilation of every block; empty is 1 everywhere.
      patch_size: height and width of a patch; images are zero padded to a multiple.
    """

    dim: int
    depth: int = 12
    num_heads: int
    kernel_size: int | None = 7
    dilations: tuple[int, ...] = ()
    patch_size: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "depth", "num_heads", "patch_size"):
            arguments.check_size(name, getattr(self, name))
        if self.kernel_size is not None:
            arguments.check_size("kernel_size", self.kernel_size)
        arguments.check_heads(self.dim, self.num_heads)
        dilations = self.dilations if self.dilations != () else (1,) * self.depth
        dilations = arguments.check_sizes("dilations", dilations, self.depth, "block")
        if self.kernel_size is None and max(dilations) > 1:
            raise ValueError(f"dilations must all be 1 for global attention; got {dilations}")
        self._set(dilations=dilations)
        self._set_outputs()

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the one level."""
        return (self.dim,)

    @property
    def reductions(self) -> tuple[int, ...]:
        """Pixels along each axis that a token stands for."""
        return (self.patch_size,)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Kernel size and dilation of every block; of global attention, the map's size."""
        return tuple((self.kernel_size or self.map_size, d) for d in self.dilations)

    @property
    def map_size(self) -> int:
        """Tokens along each axis at the designed input size."""
        return -(-self.input_size // self.patch_size)


class Isotropic(VisionModel):
    """Isotropic NAT or DiNAT, or ViT with relative position bias, as its config says.

    Patches, blocks at one resolution, norm, mean over positions, linear head. Global attention is
    neighborhood attention with a window as large as the map.

    Args:
      config: the shape of the model.
      dtype: dtype of matrix products, convolutions and attention, such as ``jnp.bfloat16``; None
        is ``param_dtype``. Residual stream, norms, LayerScale, pooling and classifier are in
        float32 whatever it is (float64 where it is float64), and so are features and logits.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block instead of storing its inside.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: stream ``params`` (or the default one) draws the initial parameters.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from natjax import Isotropic, IsotropicConfig
    >>> config = IsotropicConfig(dim=8, depth=2, num_heads=2, kernel_size=3, patch_size=4)
    >>> Isotropic(config, rngs=nnx.Rngs(0))(jnp.ones((2, 24, 17, 3))).shape
    (2, 1000)
    """

    def __init__(
        self,
        config: IsotropicConfig,
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
        channels, patch = config.dim, config.patch_size
        self.patch_embed = PatchTokenizer(config.in_channels, channels, patch, **options)
        rates = drop_path_rates(config.drop_path, config.depth)
        self.layers = nnx.List(
            Block(
                channels,
                config.num_heads,
                kernel_size,
                dilation,
                mlp_ratio=config.mlp_ratio,
                drop_path_rate=rate,
                dropout=config.dropout,
                attn_dropout=config.attn_dropout,
                implementation=implementation,
                **options,
            )
            for rate, (kernel_size, dilation) in zip(rates, config.windows, strict=True)
        )

    def _levels(self) -> list[tuple[list[Block], nnx.Module | None]]:
        return [(list(self.layers), None)]

    def _check_map(self, images: tuple[int, ...], x: tuple[int, ...]) -> None:
        size, patch = self.config.map_size, self.config.patch_size
        if self.config.kernel_size is None and x != (size, size):
            raise ValueError(
                f"images must give a map of {size} x {size} patches of {patch} (global attention, "
                f"input_size={self.config.input_size}); got {x} patches from {images}"
            )
