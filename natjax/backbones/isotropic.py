"""The isotropic models: NAT, DiNAT and ViT with relative position bias, on one map size.

Reference:
  Hassani and Shi, *Dilated Neighborhood Attention Transformer*, 2022 (isotropic variants).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from natjax.backbones.base import ModelConfig, VisionModel
from natjax.kernels.api import Implementation
from natjax.nn import arguments
from natjax.nn.block import Block, drop_path_rates, run_block
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
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype or param_dtype, "param_dtype": param_dtype, "rngs": rngs}
        channels, patch = config.dim, config.patch_size
        self.patch_embed = PatchTokenizer(config.in_channels, channels, patch, **options)
        rates = drop_path_rates(config.drop_path, config.depth)
        self.layers = nnx.List(
            Block(
                channels,
                config.num_heads,
                config.kernel_size or config.map_size,
                dilation,
                mlp_ratio=config.mlp_ratio,
                drop_path_rate=rate,
                dropout=config.dropout,
                attn_dropout=config.attn_dropout,
                implementation=implementation,
                **options,
            )
            for rate, dilation in zip(rates, config.dilations, strict=True)
        )
        self.remat = remat
        super().__init__(config, (channels,), **options)

    def maps(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> list[Float[Array, "B _Hi _Wi _Ci"]]:
        """The output of the last block, without output norm, as a list of one map.

        Raises:
          ValueError: global attention, and images that do not give the designed map size.
        """
        x = self.patch_embed(self._checked(images))
        self._check_map(images.shape, x.shape)
        for block in self.layers:
            x = run_block(block, x, rngs, remat=self.remat)
        return [x]

    def _check_map(self, images: tuple[int, ...], x: tuple[int, ...]) -> None:
        size, patch = self.config.map_size, self.config.patch_size
        if self.config.kernel_size is None and x[1:3] != (size, size):
            raise ValueError(
                f"images must give a map of {size} x {size} patches of {patch} (global attention, "
                f"input_size={self.config.input_size}); got {x[1:3]} patches from {images}"
            )
