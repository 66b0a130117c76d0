"""Building blocks of the models: initialised layers, dropout without state, MLP, patch layers.

Maps are channels-last, ``[B, H, W, C]``. No module holds random state: `dropout` and `drop_path`
draw from the ``rngs`` of the call, and ``rngs=None`` means evaluation. Parameters start as
published: linear layers normal with deviation 0.02, convolutions by PyTorch's default.

``dtype`` is the type of the matrix products and convolutions, as in PyTorch's autocast: norms are
computed in float32 whatever it is (float64 where it is float64), and round their result to it only
where the next layer would. The layers that make maps, tokenizers and downsamplers, return them as
the norm gives them, in float32: `natjax.nn.block` says why.
"""

from __future__ import annotations

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.kernels.checks import accumulation_dtype
from natjax.nn.initial import Initialiser, normal_init
from natjax.nn.mode import Module
from natjax.nn.products import Conv, Linear


class LayerOptions(TypedDict):
    """What layers that are made of others pass on to them.

    Attributes:
      dtype: dtype of matrix products and convolutions.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    dtype: DTypeLike
    param_dtype: DTypeLike
    rngs: nnx.Rngs


def linear(
    inputs: int,
    outputs: int,
    *,
    use_bias: bool = True,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Linear:
    """Linear layer, initialised as published.

    Args:
      inputs: size of the input's last axis.
      outputs: size of the output's last axis.
      use_bias: whether a bias, initially 0, is added.
      dtype: dtype of the product.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """
    return Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=normal_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def full_precision(dtype: DTypeLike) -> jnp.dtype:
    """Dtype of norms and sums among layers of a dtype: float32, or float64 for float64."""
    return accumulation_dtype(jnp.dtype(dtype))


def conv(
    inputs: int,
    outputs: int,
    kernel_size: int,
    stride: int,
    *,
    padding: int = 0,
    use_bias: bool = True,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Conv:
    """2-D convolution with PyTorch's default initialisation: U(+-1/sqrt(fan_in)), bias too.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      kernel_size: height and width of the kernel.
      stride: of the kernel's places, along both axes.
      padding: zeros around the input.
      use_bias: whether a bias is added.
      dtype: dtype of the product.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """
    uniform = Initialiser("uniform", (inputs * kernel_size**2) ** -0.5)
    return Conv(
        inputs,
        outputs,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        use_bias=use_bias,
        kernel_init=uniform,
        bias_init=uniform,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def dropout(x: Float[Array, "*S"], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "*S"]:
    """Zero each element with probability ``rate`` and scale the others by ``1 / (1 - rate)``.

    Draws from the stream ``dropout``. The identity where ``rate`` is 0 or ``rngs`` None.
    """
    if rngs is None or rate == 0:
        return x
    return _drop(x, rate, rngs.dropout(), x.shape)


def drop_path(x: Float[Array, "B *S"], rate: float, rngs: nnx.Rngs | None) -> Float[Array, "B *S"]:
    """Zero whole samples with probability ``rate`` and scale the others by ``1 / (1 - rate)``.

    Stochastic depth (Huang et al., 2016) when applied to a residual branch. Draws from the stream
    ``droppath``. The identity where ``rate`` is 0 or ``rngs`` None.
    """
    if rngs is None or rate == 0:
        return x
    return _drop(x, rate, rngs.droppath(), (x.shape[0],) + (1,) * (x.ndim - 1))


def drop_channels(
    x: Float[Array, "B *S C"], rate: float, rngs: nnx.Rngs | None
) -> Float[Array, "B *S C"]:
    """Zero whole channels with probability ``rate`` and scale the others by ``1 / (1 - rate)``.

    PyTorch's ``Dropout2d``; samples draw apart. Draws from the stream ``dropout``. The identity
    where ``rate`` is 0 or ``rngs`` None.
    """
    if rngs is None or rate == 0:
        return x
    return _drop(x, rate, rngs.dropout(), (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]))


def _drop(x: Array, rate: float, key: Array, mask_shape: tuple[int, ...]) -> Array:
    # Over explicit axes of a mesh, the mask is laid out as what it is for; the draws are the same.
    mesh, spec = jax.typeof(x).sharding.mesh, jax.typeof(x).sharding.spec
    places = [s if n == m else None for s, n, m in zip(spec, x.shape, mask_shape, strict=True)]
    sharding = NamedSharding(mesh, P(*places)) if any(places) else None
    keep = jax.random.bernoulli(key, 1 - rate, mask_shape, out_sharding=sharding)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def pad_to(x: Float[Array, "B *X C"], sizes: tuple[int, ...]) -> Float[Array, "B *Y C"]:
    """Zero pad the token axes at their ends up to at least ``sizes``."""
    extra = [(0, max(0, size - n)) for size, n in zip(sizes, x.shape[1:-1], strict=True)]
    return jnp.pad(x, [(0, 0), *extra, (0, 0)]) if any(n for _, n in extra) else x


def pad_to_multiple(x: Float[Array, "B *X C"], factor: int) -> Float[Array, "B *Y C"]:
    """Zero pad the token axes at their ends up to multiples of ``factor``."""
    return pad_to(x, tuple(math.ceil(n / factor) * factor for n in x.shape[1:-1]))


class LayerNorm(nnx.Module):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift.

    Mean, variance and result are computed in float32 (float64 for float64 inputs). Epsilon is
    PyTorch's 1e-5. (Ours, because `flax.nnx.LayerNorm` fails under strict dtype promotion.)

    Args:
      channels: size of the last axis.
      dtype: dtype of the output.
      param_dtype: dtype of ``scale`` (initially 1) and ``bias`` (initially 0).
      rngs: accepted, as by other layers; nothing is drawn.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones((channels,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), param_dtype))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*S C"]) -> Float[Array, "*S C"]:
        """Normalise."""
        exact = accumulation_dtype(self.dtype)
        x = x.astype(exact)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale, bias = (p[...].astype(exact).reshape(shape) for p in (self.scale, self.bias))
        return (x * scale + bias).astype(self.dtype)


class Mlp(Module):
    """Linear, exact (erf) GELU, linear, on the last axis.

    Args:
      channels: size of input and output.
      hidden: size in between.
      drop: dropout rate after each linear layer.
      dtype: dtype of the products.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        drop: float = 0.0,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = linear(channels, hidden, **options)
        self.fc2 = linear(hidden, channels, **options)
        self.drop = drop

    def __call__(self, x: Float[Array, "*S C"], rngs: nnx.Rngs | None = None) -> Array:
        """Run the MLP; ``rngs`` serves the dropout, None means evaluation.

        Raises:
          ValueError: no ``rngs`` after ``train()``.
        """
        rngs = self._rngs_in_use(rngs, drop=self.drop)
        x = nnx.gelu(self.fc1(x), approximate=False)
        x = self.fc2(dropout(x, self.drop, rngs))
        return dropout(x, self.drop, rngs)


class ConvTokenizer(nnx.Module):
    """Overlapping patches of stride 4: two 3x3 convolutions of stride 2, then LayerNorm.

    There is no activation or norm between the convolutions. Odd sizes give ``ceil(n / 2)`` each.
    (The tokenizer of NAT and DiNAT.)

    Args:
      inputs: channels of the images.
      channels: channels of the tokens, an even number.
      dtype: dtype of the convolutions.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        first = conv(inputs, channels // 2, 3, 2, padding=1, **options)
        second = conv(channels // 2, channels, 3, 2, padding=1, **options)
        self.proj = nnx.List([first, second])
        self.norm = LayerNorm(channels, **options | {"dtype": full_precision(dtype)})

    def __call__(self, images: Float[Array, "B H W I"]) -> Float[Array, "B H4 W4 C"]:
        """Tokens at a quarter of the resolution, rounded up."""
        for convolution in self.proj:
            images = convolution(images)
        return self.norm(images)


class PatchTokenizer(nnx.Module):
    """Disjoint patches: one convolution with kernel = stride, then LayerNorm.

    Sizes that are no multiple of the patch are zero padded right and bottom.

    Args:
      inputs: channels of the images.
      channels: channels of the tokens.
      patch_size: height and width of a patch in pixels.
      dtype: dtype of the convolution.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        patch_size: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.proj = conv(inputs, channels, patch_size, patch_size, **options)
        self.norm = LayerNorm(channels, **options | {"dtype": full_precision(dtype)})
        self.patch_size = patch_size

    def __call__(self, images: Float[Array, "B H W I"]) -> Float[Array, "B Hp Wp C"]:
        """One token per patch."""
        return self.norm(self.proj(pad_to_multiple(images, self.patch_size)))


class ConvDownsampler(nnx.Module):
    """Halve the map and double its channels: 3x3 convolution of stride 2, then LayerNorm.

    Args:
      channels: channels of the input; the output has twice as many.
      dtype: dtype of the convolution.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.reduction = conv(channels, 2 * channels, 3, 2, padding=1, use_bias=False, **options)
        self.norm = LayerNorm(2 * channels, **options | {"dtype": full_precision(dtype)})

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """The map at half the resolution, rounded up."""
        return self.norm(self.reduction(x))


class PatchMerging(nnx.Module):
    """Halve the map and double its channels: LayerNorm of each 2x2 patch, then a linear layer.

    The order in a patch is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1). Odd sizes are zero
    padded right and bottom. The result is a matrix product, in ``dtype``; the next block's residual
    stream goes on from it in float32. (Swin Transformer, section 3.1; DiNAT_s.)

    Args:
      channels: channels of the input; the output has twice as many.
      dtype: dtype of the product.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = LayerNorm(4 * channels, **options)
        self.reduction = linear(4 * channels, 2 * channels, use_bias=False, **options)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        """The map at half the resolution, rounded up."""
        x = pad_to_multiple(x, 2)
        patches = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(patches, axis=-1)))
