"""Layers of the heads: batch normalisation, and convolutions with norm and ReLU.

Statistics of a batch are for training and running statistics for evaluation, so these layers take
``train`` with each call. A training call writes the new running statistics into the module, which
is state of the kind `flax.nnx.BatchStat`: inside a transformation, take it out with
``nnx.state(module, nnx.BatchStat)`` and return it.
"""

from __future__ import annotations

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from natjax.kernels.checks import accumulation_dtype
from natjax.nn.layers import LayerOptions
from natjax.nn.products import Conv

# Of PyTorch's and mmcv's constructors.
kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

_EPSILON, _MOMENTUM = 1e-5, 0.1


class BatchNorm(nnx.Module):
    """Normalise each channel to mean 0 and variance 1 over the batch, then scale and shift.

    As PyTorch's: a training call normalises by the biased variance of the batch and moves the
    running statistics a tenth of the way to mean and **unbiased** variance of the batch; an
    evaluation call uses the running statistics. (Ours, because `flax.nnx.BatchNorm` keeps the
    biased variance and fails under strict dtype promotion.)

    The batch is all that the array holds. Under `jax.jit` that is the batch over all devices that
    share it, so statistics are synchronised and no axis has a name. Statistics and result are
    computed in float32 (float64 for a float64 layer), the variance around the mean, which costs a
    second small sum over devices and is exact for means far from 0.

    Args:
      channels: size of the last axis.
      dtype: dtype of the output.
      param_dtype: dtype of ``scale`` (initially 1) and ``bias`` (initially 0).
      rngs: accepted, as by other layers; nothing is drawn.

    Attributes:
      mean: running mean, initially 0.
      var: running variance, initially 1.
      num_batches: training calls so far. Nothing depends on it; PyTorch's files have it.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs
        exact = accumulation_dtype(jnp.dtype(param_dtype))
        self.scale = nnx.Param(jnp.ones((channels,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), exact))
        self.var = nnx.BatchStat(jnp.ones((channels,), exact))
        self.num_batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.dtype = jnp.dtype(dtype)

    def __call__(
        self,
        x: Float[Array, "B *S C"],
        *,
        train: bool,
        mask: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B *S C"]:
        """Normalise; a training call updates the running statistics.

        Args:
          x: the batch.
          train: whether to use the statistics of the batch.
          mask: rows of the batch that its statistics are of; None is all. Without any row the
            statistics are taken for 0.

        Raises:
          ValueError: training on one value a channel, whose variance is 0 whatever it is.
        """
        exact = accumulation_dtype(self.dtype)
        x = x.astype(exact)
        if train:
            mean, var = self._batch_statistics(x, mask)
        else:
            mean, var = self.mean[...].astype(exact), self.var[...].astype(exact)
        factor = jax.lax.rsqrt(var + _EPSILON) * self.scale[...].astype(exact)
        x = (x - _along_channels(mean, x)) * _along_channels(factor, x)
        return (x + _along_channels(self.bias[...].astype(exact), x)).astype(self.dtype)

    def _batch_statistics(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """Mean and biased variance of the batch, which the running statistics move towards."""
        if math.prod(x.shape[:-1]) < 2:
            raise ValueError(
                "x must hold at least two values a channel to train batch normalisation; got"
                f" {x.shape}: train on at least two images at a time (on all devices together)"
            )
        axes = tuple(range(x.ndim - 1))
        # Rows that do not count are multiplied away, so that shapes stay the same.
        rows = jnp.ones(x.shape[:1], x.dtype) if mask is None else mask.astype(x.dtype)
        count = jnp.sum(rows) * math.prod(x.shape[1:-1])
        rows = rows.reshape(-1, *(1,) * (x.ndim - 1))
        mean = jnp.sum(rows * x, axes) / jnp.maximum(count, 1)
        var = jnp.sum(rows * jnp.square(x - _along_channels(mean, x)), axes)
        _move(self.mean, mean)
        _move(self.var, var / jnp.maximum(count - 1, 1))
        self.num_batches[...] = self.num_batches[...] + 1
        return mean, var / jnp.maximum(count, 1)


def _along_channels(values: Array, x: Array) -> Array:
    """One value a channel, in a shape that broadcasts against ``x``."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _move(running: nnx.BatchStat, batch: Array) -> None:
    """Move a running statistic towards that of a batch."""
    batch = jax.lax.stop_gradient(batch).astype(running[...].dtype)
    running[...] = (1 - _MOMENTUM) * running[...] + _MOMENTUM * batch


class ConvModule(nnx.Module):
    """Convolution that keeps the size of the map, then batch normalisation and ReLU.

    (mmcv's class of that name.) With a norm, the convolution has no bias. Kernels start as mmcv
    draws them, normal with deviation ``sqrt(2 / fan_out)``; biases at 0.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      kernel_size: odd side of the kernel; the map is zero padded by half of it.
      norm: whether there is a norm, ``bn``.
      relu: whether there is a ReLU.
      **options: `natjax.nn.layers.LayerOptions`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        norm: bool = True,
        relu: bool = True,
        **options: Unpack[LayerOptions],
    ):
        half = kernel_size // 2
        self.conv = Conv(
            inputs,
            outputs,
            (kernel_size, kernel_size),
            padding=((half, half), (half, half)),
            use_bias=not norm,
            kernel_init=kaiming_normal,
            **options,
        )
        self.bn = BatchNorm(outputs, **options) if norm else None
        self.relu = relu

    def __call__(
        self,
        x: Float[Array, "B H W I"],
        *,
        train: bool,
        mask: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B H W O"]:
        """Run the layers; ``train`` and ``mask`` are for the norm."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x, train=train, mask=mask)
        return nnx.relu(x) if self.relu else x
