"""How float32 numbers are multiplied: what JAX asks for, and how exact three products of TF32 are.

Tensor cores are imitated here: they see the first 19 bits of an operand, and round sums towards
zero, eight products at a time. (That they do is found by measuring; NVIDIA does not say.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.kernels import checks

PRODUCTS = {
    None: "tf32x3",
    "TF32_TF32_F32_X3": "tf32x3",
    "highest": "float32",
    "float32": "float32",
    "F32_F32_F32": "float32",
    "high": "tf32",
    "tensorfloat32": "tf32",
    "TF32_TF32_F32": "tf32",
    "default": "tf32",
    "bfloat16": "tf32",
}


@pytest.mark.parametrize("setting", PRODUCTS)
def test_how_float32_is_multiplied_is_as_jax_has_been_told(setting):
    with jax.default_matmul_precision(setting):
        assert checks.float32_products() == PRODUCTS[setting]
        # "xla" leaves it to JAX where JAX has been told.
        assert checks.product_precision(jnp.float32) == ("highest" if setting is None else None)


def in_halves(x):
    """As the kernels of "pallas_triton" have it."""
    from natjax.kernels.backends.pallas_triton.program import halves

    return [np.asarray(half) for half in halves(jnp.asarray(x))]


def cut(x):
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def towards_zero(x):
    """Float64 numbers as float32, none of larger size."""
    nearest = x.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)


def on_tensor_cores(a, b, total):
    for k in range(0, a.shape[1], 8):
        steps = cut(a[:, k : k + 8]).astype(np.float64) @ cut(b[k : k + 8]).astype(np.float64)
        total = towards_zero(total.astype(np.float64) + steps)
    return total


def by_thirds(a, b, chunk=16):
    """As kernels have it: a sum on tensor cores for each chunk, and theirs elsewhere."""
    (a_large, a_small), (b_large, b_small) = in_halves(a), in_halves(b)
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(0, a.shape[1], chunk):
        part, here = np.zeros_like(total), slice(k, k + chunk)
        for x, y in ((a_small, b_large), (a_large, b_small), (a_large, b_large)):
            part = on_tensor_cores(x[:, here], y[here], part)
        total += part
    return total


def plainly(a, b):
    """One fused multiply and add after the other."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        exact = a[:, k, None].astype(np.float64) * b[k].astype(np.float64)
        total = (total.astype(np.float64) + exact).astype(np.float32)
    return total


def attention(product, q, k, v):
    """In float32 but for the exponentials, with a product of two matrices."""
    logits = product(q, np.ascontiguousarray(k.T)).astype(np.float64) / q.shape[1] ** 0.5
    weights = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float32)
    out = product(weights, v).astype(np.float64)
    return out / weights.astype(np.float64).sum(1, keepdims=True)


@pytest.mark.parametrize("keys", [48, 1600])
@pytest.mark.parametrize("spread", [1, 4], ids=["flat", "peaked"])
def test_three_products_of_tf32_are_about_as_exact_as_float32(keys, spread):
    """Of an attention of many keys or few, weights alike or not."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(n, 32)).astype(np.float32) for n in (16, keys, keys))
    q *= spread
    exact = attention(np.matmul, *(x.astype(np.float64) for x in (q, k, v)))

    def error(product):
        return np.abs(attention(product, q, k, v) - exact).max() / np.abs(exact).max()

    zeros = np.zeros((), np.float32)
    rounded = error(lambda a, b: on_tensor_cores(a, b, zeros))
    assert error(by_thirds) < 4 * error(plainly)
    assert rounded > 100 * error(by_thirds)


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 1 / 3, 1e-30, 3e38, np.pi])
def test_halves_are_all_of_a_number(x):
    x = np.float32([x])
    large, small = in_halves(x)
    assert large == cut(large)
    assert np.float64(large) + np.float64(small) == x
    assert np.abs(small) <= np.abs(x) * 2.0**-11


@pytest.mark.parametrize("x", [np.inf, -np.inf, np.nan])
def test_halves_of_what_is_not_finite_have_nan(x):
    """So it does not get lost, but infinity becomes nan in what it is multiplied into."""
    large, small = in_halves(np.float32([x]))
    assert np.isnan(large + small).all()
