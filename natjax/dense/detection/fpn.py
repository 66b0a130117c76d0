"""The feature pyramid that detectors look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from flax import nnx
from jaxtyping import Array, Float

from natjax.dense.layers import ConvModule
from natjax.dense.resize import resize_nearest
from natjax.nn.layers import LayerOptions


class FPN(nnx.Module):
    """Bring all maps of a backbone to the same channels, and the coarse ones' content to the fine.

    Each map is convolved to ``channels`` (1x1), the next coarser result is added to it, enlarged to
    its size by repetition, and the sum is convolved (3x3). There are no norms and no activations.
    (Feature Pyramid Network, Lin et al., 2017.)

    Args:
      inputs: channels of each map of the backbone, finest first.
      channels: channels of the pyramid.
      extra_levels: coarser maps to add, each every other row and column of the one before.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        extra_levels: int = 1,
        **options: Unpack[LayerOptions],
    ):
        plain = {"norm": False, "relu": False}
        self.lateral_convs = nnx.List(
            ConvModule(size, channels, 1, **plain, **options) for size in inputs
        )
        self.fpn_convs = nnx.List(
            ConvModule(channels, channels, 3, **plain, **options) for _ in inputs
        )
        self.extra_levels = extra_levels

    def __call__(
        self, maps: Sequence[Float[Array, "B _Hi _Wi _Ci"]]
    ) -> list[Float[Array, "B _Hi _Wi C"]]:
        """The pyramid, finest map first.

        Raises:
          ValueError: another number of maps than the pyramid was made for.
        """
        if len(maps) != len(self.lateral_convs):
            raise ValueError(
                f"maps must hold {len(self.lateral_convs)}, as the pyramid was made for; got"
                f" {len(maps)}"
            )
        levels = [conv(x, train=False) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            coarse = resize_nearest(levels[fine + 1], levels[fine].shape[1:3])
            levels[fine] = levels[fine] + coarse
        levels = [conv(x, train=False) for conv, x in zip(self.fpn_convs, levels, strict=True)]
        for _ in range(self.extra_levels):
            levels.append(levels[-1][:, ::2, ::2])
        return levels
