"""The heads of a detector: class and corners of a box, and the mask in it."""

from __future__ import annotations

import itertools
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from natjax.dense.detection.config import BoxHeadConfig
from natjax.dense.layers import ConvModule
from natjax.kernels.checks import accumulation_dtype
from natjax.nn.initial import Initialiser
from natjax.nn.layers import LayerOptions, conv
from natjax.nn.products import Linear, affine

BOX_BINS, MASK_BINS = 7, 14
"""Sides of the grids that the heads see of a region; a mask has twice the side of its grid."""


def _uniform(fan_in: int) -> Initialiser:
    """PyTorch's default initialiser, of weights and biases."""
    return Initialiser("uniform", fan_in**-0.5)


def _linear(inputs: int, outputs: int, **options: Unpack[LayerOptions]) -> Linear:
    init = _uniform(inputs)
    return Linear(inputs, outputs, kernel_init=init, bias_init=init, **options)


class BoxHead(nnx.Module):
    """Convolutions, linear layers, and from these class and deltas.

    Linear layers start at PyTorch's default, as in the published training.

    Args:
      inputs: channels of a region.
      num_classes: classes of objects; background is one more, the last.
      config: layers and channels.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(
        self, inputs: int, num_classes: int, config: BoxHeadConfig, **options: Unpack[LayerOptions]
    ):
        channels = [inputs] + [config.conv_channels] * config.convs
        self.shared_convs = nnx.List(
            ConvModule(n, m, 3, **options) for n, m in itertools.pairwise(channels)
        )
        sizes = [channels[-1] * BOX_BINS**2] + [config.linear_channels] * config.linears
        self.shared_fcs = nnx.List(_linear(n, m, **options) for n, m in itertools.pairwise(sizes))
        # In full precision: losses and boxes need it.
        options["dtype"] = accumulation_dtype(jnp.dtype(options["dtype"]))
        self.fc_cls = _linear(sizes[-1], num_classes + 1, **options)
        self.fc_reg = _linear(sizes[-1], 4 * num_classes, **options)

    def __call__(
        self,
        regions: Float[Array, "N P P C"],
        *,
        train: bool,
        valid: Bool[Array, "N"] | None = None,
    ) -> tuple[Float[Array, "N K1"], Float[Array, "N K 4"]]:
        """Logits of the classes, background last, and deltas for each class.

        Args:
          regions: what `natjax.dense.ops.roi_align` makes of the boxes.
          train: whether norms use and update statistics of the batch.
          valid: the regions that these statistics are of; None is all.
        """
        x = regions
        for layer in self.shared_convs:
            x = layer(x, train=train, mask=valid)
        # Channels come first in the rows of the published weights.
        x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)
        for layer in self.shared_fcs:
            x = nnx.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x).reshape(x.shape[0], -1, 4)


class Upsample(nnx.Module):
    """Transposed convolution of kernel 2 and stride 2: every position becomes four.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(
        self, inputs: int, outputs: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        init = _uniform(4 * outputs)  # what PyTorch takes for the fan of a transposed convolution
        shape = (2, 2, inputs, outputs)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(init(rngs.params(), (outputs,), param_dtype))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 D"]:
        """The map at twice the size."""
        number, height, width, channels = x.shape
        # Each position makes four of its own: a linear layer, whose outputs are then put in place.
        kernel = jnp.moveaxis(self.kernel[...], 2, 0).reshape(channels, -1)
        x = affine(x, kernel, jnp.tile(self.bias[...], 4), self.dtype)
        x = x.reshape(number, height, width, 2, 2, -1)
        return jnp.swapaxes(x, 2, 3).reshape(number, 2 * height, 2 * width, -1)


class MaskHead(nnx.Module):
    """Four convolutions, a doubling of the size, and a map of logits for each class.

    Args:
      inputs: channels of a region.
      channels: of the layers.
      num_classes: classes of objects.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(
        self, inputs: int, channels: int, num_classes: int, **options: Unpack[LayerOptions]
    ):
        self.convs = nnx.List(
            ConvModule(n, channels, 3, norm=False, **options) for n in [inputs] + [channels] * 3
        )
        self.upsample = Upsample(channels, channels, **options)
        options["dtype"] = accumulation_dtype(jnp.dtype(options["dtype"]))
        self.conv_logits = conv(channels, num_classes, 1, 1, **options)

    def __call__(self, regions: Float[Array, "N P P C"]) -> Float[Array, "N K M M"]:
        """Logits of the pixels of each class's mask, at twice the size of the regions."""
        x = regions
        for layer in self.convs:
            x = layer(x, train=False)
        return jnp.moveaxis(self.conv_logits(nnx.relu(self.upsample(x))), -1, 1)
