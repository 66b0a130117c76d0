"""The heads of UPerNet, on the maps of a backbone.

References:
  Xiao et al., *Unified Perceptual Parsing for Scene Understanding*, ECCV 2018 (UPerNet);
  Zhao et al., *Pyramid Scene Parsing Network*, CVPR 2017 (pyramid pooling);
  Long et al., *Fully Convolutional Networks for Semantic Segmentation*, CVPR 2015 (FCN).
Attribute names are those of the published state dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.dense.layers import ConvModule
from natjax.dense.resize import adaptive_average_pool, resize_bilinear
from natjax.kernels.checks import accumulation_dtype
from natjax.nn.initial import Initialiser
from natjax.nn.layers import LayerOptions, drop_channels

Maps = Sequence[Float[Array, "B _Hi _Wi _Ci"]]


class UPerHead(nnx.Module):
    """Logits from all levels of a backbone: pyramid pooling, feature pyramid, classifier.

    The last map is pooled at several scales; the result and the other maps, brought to the same
    channels, are added from the last level to the first. All levels together, at the size of the
    first, give the logits.

    Args:
      inputs: channels of each map, from the finest to the coarsest; one is enough.
      channels: channels within the head.
      num_classes: outputs of the classifier.
      pool_scales: cells along each axis of the last map that pyramid pooling averages over.
      dropout: rate at which whole channels are dropped before the classifier.
      **options: `natjax.nn.layers.LayerOptions`. The classifier computes in float32 at least.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        pool_scales: Sequence[int],
        dropout: float,
        **options: Unpack[LayerOptions],
    ):
        *others, last = inputs
        pooled = last + channels * len(pool_scales)
        self.psp_modules = nnx.List(ConvModule(last, channels, 1, **options) for _ in pool_scales)
        self.bottleneck = ConvModule(pooled, channels, 3, **options)
        self.lateral_convs = nnx.List(ConvModule(size, channels, 1, **options) for size in others)
        self.fpn_convs = nnx.List(ConvModule(channels, channels, 3, **options) for _ in others)
        self.fpn_bottleneck = ConvModule(channels * len(inputs), channels, 3, **options)
        self.conv_seg = classifier(channels, num_classes, **options)
        self.pool_scales = tuple(pool_scales)
        self.dropout = dropout
        self.dtype = jnp.dtype(options["dtype"])

    def __call__(self, maps: Maps, rngs: nnx.Rngs | None = None) -> Float[Array, "B H1 W1 classes"]:
        """Logits at the size of the first map.

        Args:
          maps: of the backbone, from the finest to the coarsest.
          rngs: stream ``dropout`` of a training step, which uses the statistics of the batch; None
            means evaluation.
        """
        train = rngs is not None
        maps = [x.astype(self.dtype) for x in maps]  # those of a backbone are float32 at least
        top = self.pool(maps[-1], train=train)
        levels = self.merge(maps[:-1], top, train=train)
        size = maps[0].shape[1:3]
        levels = [resize_bilinear(level, size) for level in levels]
        x = self.fpn_bottleneck(jnp.concatenate(levels, axis=-1), train=train)
        return self.conv_seg(drop_channels(x, self.dropout, rngs))

    def pool(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W channels"]:
        """The last map with what pyramid pooling adds to it."""
        branches = [
            resize_bilinear(conv(adaptive_average_pool(x, cells), train=train), x.shape[1:3])
            for cells, conv in zip(self.pool_scales, self.psp_modules, strict=True)
        ]
        return self.bottleneck(jnp.concatenate([x, *branches], axis=-1), train=train)

    def merge(
        self, maps: Maps, top: Float[Array, "B H W channels"], *, train: bool
    ) -> list[Float[Array, "B _Hi _Wi channels"]]:
        """The feature pyramid, from the finest level to ``top``, which is passed on as it is."""
        levels = [conv(x, train=train) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        coarser = top
        for i in reversed(range(len(levels))):
            coarser = levels[i] = levels[i] + resize_bilinear(coarser, levels[i].shape[1:3])
        convs = zip(self.fpn_convs, levels, strict=True)
        return [*(conv(level, train=train) for conv, level in convs), top]


class FCNHead(nnx.Module):
    """Logits from one map: a 3x3 convolution and a classifier.

    Args:
      inputs: channels of the map.
      channels: channels within the head.
      num_classes: outputs of the classifier.
      dropout: rate at which whole channels are dropped before the classifier.
      **options: `natjax.nn.layers.LayerOptions`. The classifier computes in float32 at least.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        num_classes: int,
        *,
        dropout: float,
        **options: Unpack[LayerOptions],
    ):
        self.convs = nnx.List([ConvModule(inputs, channels, 3, **options)])
        self.conv_seg = classifier(channels, num_classes, **options)
        self.dropout = dropout
        self.dtype = jnp.dtype(options["dtype"])

    def __call__(
        self, x: Float[Array, "B H W C"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B H W classes"]:
        """Logits at the size of the map; ``rngs`` as for `UPerHead`."""
        x = x.astype(self.dtype)
        for conv in self.convs:
            x = conv(x, train=rngs is not None)
        return self.conv_seg(drop_channels(x, self.dropout, rngs))


def classifier(
    inputs: int, num_classes: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 1x1 convolution in full precision, which is cheap and which losses need."""
    return nnx.Conv(
        inputs,
        num_classes,
        (1, 1),
        kernel_init=Initialiser("normal", 0.01),
        dtype=accumulation_dtype(jnp.dtype(dtype)),
        param_dtype=param_dtype,
        rngs=rngs,
    )
