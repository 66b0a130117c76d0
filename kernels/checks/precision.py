"""How exact products and sums are."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

# How a kernel multiplies float32 numbers: as they are; as a sum of three products of their larger
# and smaller halves, which tensor cores do, with about as small errors; or rounded to TF32.
type Float32Products = Literal["float32", "tf32x3", "tf32"]
# What each value of jax_default_matmul_precision asks of them. All others allow TF32 and less.
_FLOAT32_PRODUCTS: dict[str | None, Float32Products] = {
    None: "tf32x3",
    "TF32_TF32_F32_X3": "tf32x3",
    "BF16_BF16_F32_X3": "tf32x3",
    "BF16_BF16_F32_X6": "tf32x3",
    "BF16_BF16_F32_X9": "float32",
    "highest": "float32",
    "float32": "float32",
    "F32_F32_F32": "float32",
    "F64_F64_F64": "float32",
}


def product_precision(dtype: Any) -> str | None:
    """The precision of matrix products of arrays of a dtype, as `jax.numpy.einsum` takes it.

    Products of float32 arrays are exact unless ``jax_default_matmul_precision`` says otherwise;
    GPUs and TPUs would round them. Half-precision arrays lose nothing either way.
    """
    is_asked = jax.config.jax_default_matmul_precision is not None
    return "highest" if jnp.dtype(dtype) == jnp.float32 and not is_asked else None


def float32_products() -> Float32Products:
    """How kernels for GPUs multiply float32 numbers, by ``jax_default_matmul_precision``.

    By default with the accuracy of float32, "tf32x3"; where that asks for products of float32
    itself, so ("float32"); and rounded, "tf32", where it allows that.
    """
    return _FLOAT32_PRODUCTS.get(jax.config.jax_default_matmul_precision, "tf32")


def accumulation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Dtype of logits, softmax and sums: float32, or float64 for float64 inputs."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
