"""Semantic segmentation: UPerNet on any backbone of natjax."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.backbones.isotropic import Isotropic, IsotropicConfig
from natjax.backbones.nat import NAT, NATConfig
from natjax.dense.resize import resize_bilinear
from natjax.dense.segmentation.heads import FCNHead, UPerHead
from natjax.kernels.api import Implementation
from natjax.nn import arguments
from natjax.nn.layers import LayerOptions
from natjax.nn.mode import HasSummary, Module

if TYPE_CHECKING:
    from natjax.weights.names import Naming


@dataclasses.dataclass(frozen=True, kw_only=True)
class UPerNetConfig:
    """Shape of a UPerNet.

    Attributes:
      backbone: config of the backbone, with ``output_norms=True`` and ``num_classes=0``.
      num_classes: classes of a pixel.
      channels: channels within the decode head.
      pool_scales: cells along each axis that pyramid pooling averages over.
      dropout: rate at which both heads drop whole channels.
      auxiliary_channels: channels within the auxiliary head, which serves training alone; 0 for no
        such head.
      auxiliary_weight: weight of the auxiliary head's loss.
      summary_size: height and width of the images that the papers quote FLOPs for.
    """

    backbone: NATConfig | IsotropicConfig
    num_classes: int = 150
    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    auxiliary_channels: int = 256
    auxiliary_weight: float = 0.4
    summary_size: tuple[int, int] = (512, 2048)

    def __post_init__(self) -> None:
        if self.backbone.num_classes or not self.backbone.output_norms:
            raise ValueError(
                "backbone must have output_norms=True and num_classes=0; got "
                f"{self.backbone.output_norms} and {self.backbone.num_classes}"
            )
        for name in ("num_classes", "channels"):
            arguments.check_size(name, getattr(self, name))
        arguments.check_size("auxiliary_channels", self.auxiliary_channels, at_least=0)
        arguments.check_rate("dropout", self.dropout)
        if not self.auxiliary_weight >= 0:
            raise ValueError(f"auxiliary_weight must not be negative; got {self.auxiliary_weight}")
        scales = arguments.check_sizes("pool_scales", self.pool_scales, None, "branch")
        object.__setattr__(self, "pool_scales", scales)

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names that weights of such a model have elsewhere."""
        from natjax.dense.segmentation.names import UPERNET

        return (UPERNET,)

    @property
    def levels(self) -> tuple[int, ...]:
        """Channels of each map of the backbone."""
        if isinstance(self.backbone, NATConfig):
            return self.backbone.channels
        return (self.backbone.dim,)

    @property
    def auxiliary_level(self) -> int:
        """The map that the auxiliary head sees: the last but one, or the only one."""
        return max(0, len(self.levels) - 2)


class UPerNet(HasSummary, Module):
    """Backbone, decode head (UPerNet's) and auxiliary head (an FCN).

    ``rngs`` of a call make it a training call: norms of the heads use the statistics of the batch
    and update the running ones (`natjax.dense.layers`). None means evaluation. ``train()`` and
    ``eval()`` fix which of the two calls there may be (`natjax.nn.mode.Module`).

    Args:
      config: the shape of the model.
      dtype: dtype of the computation; None is ``param_dtype``. Logits are float32 at least.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass recomputes each block of the backbone.
      implementation: of the attention op, as in `natjax.na2d`.
      rngs: stream ``params`` (or the default one) draws the initial parameters.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from natjax import NATConfig, UPerNet, UPerNetConfig
    >>> backbone = NATConfig(
    ...     dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=0, output_norms=True
    ... )
    >>> config = UPerNetConfig(backbone=backbone, num_classes=5, channels=8)
    >>> UPerNet(config, rngs=nnx.Rngs(0))(jnp.ones((1, 27, 40, 3))).shape
    (1, 27, 40, 5)
    """

    def __init__(
        self,
        config: UPerNetConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype or param_dtype, "param_dtype": param_dtype, "rngs": rngs}
        family = NAT if isinstance(config.backbone, NATConfig) else Isotropic
        self.config = config
        self.backbone = family(
            config.backbone, remat=remat, implementation=implementation, **options
        )
        self.decode_head = UPerHead(
            config.levels,
            config.channels,
            config.num_classes,
            pool_scales=config.pool_scales,
            dropout=config.dropout,
            **options,
        )
        self.auxiliary_head = _auxiliary_head(config, **options)

    def heads(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "B H1 W1 classes"], Float[Array, "B H2 W2 classes"] | None]:
        """Logits of both heads at their own sizes, as the loss takes them.

        Args:
          images: normalised images of any size.
          rngs: streams ``droppath`` and ``dropout`` of a training step; None means evaluation.

        Returns:
          Logits of the decode head at the size of the first map (a quarter of the image's, rounded
          up), and of the auxiliary head at the size of the last map but one, None without that
          head.

        Raises:
          ValueError: images of another rank, dtype or number of channels; training on so few and
            small images that a norm has one value a channel.
        """
        rngs = self._rngs_in_use(rngs, dropout=self.config.dropout)
        maps = self.backbone.features(images, rngs)
        logits = self.decode_head(maps, rngs)
        if self.auxiliary_head is None:
            return logits, None
        return logits, self.auxiliary_head(maps[self.config.auxiliary_level], rngs)

    def __call__(
        self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B H W classes"]:
        """Logits of every pixel, interpolated from those of the decode head.

        Args:
          images: normalised images of any size.
          rngs: as for `heads`.

        Raises:
          ValueError: as for `heads`.
        """
        rngs = self._rngs_in_use(rngs, dropout=self.config.dropout)
        logits = self.decode_head(self.backbone.features(images, rngs), rngs)
        return resize_bilinear(logits, images.shape[1:3])

    def namings(self) -> tuple[Naming, ...]:
        """Tables of the names that its weights have elsewhere, for `natjax.load_weights`."""
        return self.config.namings()


def _auxiliary_head(config: UPerNetConfig, **options: Unpack[LayerOptions]) -> FCNHead | None:
    if not config.auxiliary_channels:
        return None
    return FCNHead(
        config.levels[config.auxiliary_level],
        config.auxiliary_channels,
        config.num_classes,
        dropout=config.dropout,
        **options,
    )
