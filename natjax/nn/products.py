"""Matrix products and convolutions in mixed precision, whose gradients are not rounded to it.

Where ``dtype`` is bfloat16 and parameters are float32, JAX makes the gradient of a kernel in
bfloat16 and converts it afterwards. If the batch is split over devices, their shares are added up
in between: in bfloat16, with a rounding to 8 bits for every device. Here a gradient leaves its
product in float32, in which products are summed anyway, so that devices exchange and add up
float32, as data parallel training does under PyTorch's autocast.

The price is that mixed precision has reverse mode only. A layer whose ``dtype`` is not below
that of its kernel is a plain layer of Flax.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """`flax.nnx.Linear` whose parameters get gradients in their own dtype."""

    def __call__(self, inputs: Float[Array, "*S I"], out_sharding: Any = None) -> Array:
        """``inputs @ kernel + bias`` over the last axis, in ``dtype``."""
        kernel = self.kernel[...]
        out_sharding = out_sharding or _layout_of_product(inputs, kernel)
        if not _is_mixed(self.dtype, kernel):
            return super().__call__(inputs, out_sharding)
        y = _matmul(kernel.dtype, out_sharding, inputs.astype(self.dtype), kernel)
        return y if self.bias is None else _add(kernel.dtype, y, self.bias[...])


def affine(
    x: Float[Array, "*S I"], kernel: Float[Array, "I O"], bias: Float[Array, " O"], dtype: Any
) -> Float[Array, "*S O"]:
    """``x @ kernel + bias`` over the last axis, in ``dtype``, as `Linear` computes it.

    For kernels that a layer keeps in another shape.
    """
    x = x.astype(dtype)
    if _is_mixed(dtype, kernel):
        return _add(kernel.dtype, _matmul(kernel.dtype, None, x, kernel), bias)
    y = jnp.matmul(x, kernel.astype(dtype))
    return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class Conv(nnx.Conv):
    """`flax.nnx.Conv` of maps, whose parameters get gradients in their own dtype."""

    def __call__(self, inputs: Float[Array, "B H W I"], out_sharding: Any = None) -> Array:
        """Convolve, in ``dtype``."""
        kernel = self.kernel[...]
        if not _is_mixed(self.dtype, kernel):
            return super().__call__(inputs, out_sharding)
        window = _Window(strides=(self.strides,) * 2, padding=self.padding)
        y = _convolve(kernel.dtype, window, inputs.astype(self.dtype), kernel)
        return y if self.bias is None else _add(kernel.dtype, y, self.bias[...])


def _layout(x: Array) -> NamedSharding | None:
    """How an array is laid out, where axes of a mesh are explicit and JAX wants to be told."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _layout_of_product(x: Array, kernel: Array) -> NamedSharding | None:
    """Of ``x @ kernel`` where both have the channels that are summed over split: as ``x``."""
    layout, of_kernel = _layout(x), _layout(kernel)
    if layout is None or of_kernel is None or layout.spec[-1] != of_kernel.spec[0]:
        return None
    return NamedSharding(layout.mesh, P(*layout.spec[:-1], of_kernel.spec[1]))


def _is_mixed(dtype: Any, kernel: Array) -> bool:
    return jnp.finfo(dtype).bits < jnp.finfo(kernel.dtype).bits


# Each function below takes the dtype of its parameter's gradient first, and then the input in the
# lower dtype and the parameter. The backward pass keeps parameters in the lower dtype.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(
    exact: Any, layout: Any, x: Float[Array, "*S I"], kernel: Float[Array, "I O"]
) -> Float[Array, "*S O"]:
    return jnp.matmul(x, kernel.astype(x.dtype), out_sharding=layout)


def _matmul_forward(
    exact: Any, layout: Any, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel.astype(x.dtype)
    return jnp.matmul(x, kernel, out_sharding=layout), (x, kernel)


def _matmul_backward(
    exact: Any, layout: Any, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    of_kernel = jax.lax.dot_general(
        x,
        g,
        ((rows, rows), ((), ())),
        preferred_element_type=exact,
        out_sharding=_layout(kernel),
    )
    return jnp.matmul(g, kernel.T, out_sharding=_layout(x)), of_kernel


_matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add(exact: Any, y: Float[Array, "*S O"], bias: Float[Array, " O"]) -> Float[Array, "*S O"]:
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def _add_forward(exact: Any, y: Array, bias: Array) -> tuple[Array, None]:
    return _add(exact, y, bias), None


def _add_backward(exact: Any, saved: None, g: Array) -> tuple[Array, Array]:
    return g, jnp.sum(g, axis=tuple(range(g.ndim - 1)), dtype=exact)


_add.defvjp(_add_forward, _add_backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """How a convolution's window moves."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    def convolve(self, x: Array, kernel: Array) -> Array:
        """Convolve a map with a kernel of the same dtype."""
        return jax.lax.conv_general_dilated(
            x, kernel, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(
    exact: Any, window: _Window, x: Float[Array, "B H W I"], kernel: Float[Array, "K L I O"]
) -> Float[Array, "B X Y O"]:
    return window.convolve(x, kernel.astype(x.dtype))


def _convolve_forward(
    exact: Any, window: _Window, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel.astype(x.dtype)
    return window.convolve(x, kernel), (x, kernel)


def _convolve_backward(
    exact: Any, window: _Window, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    (of_x,) = jax.linear_transpose(lambda x: window.convolve(x, kernel), x)(g)
    # The result has the dtype of the operands, which are converted. By default a GPU multiplies
    # them in TF32 and a TPU in bfloat16, in both of which they are exact where they were bfloat16.
    of_kernel = jax.linear_transpose(
        lambda kernel: window.convolve(x.astype(exact), kernel), kernel.astype(exact)
    )
    return of_x, *of_kernel(g.astype(exact))


_convolve.defvjp(_convolve_forward, _convolve_backward)
