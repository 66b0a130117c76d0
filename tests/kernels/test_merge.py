"""Merging partial attentions (numbers of NATTEN: test_golden_ops.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import natjax


def parts(dtype=jnp.float32, count=3):
    rng = np.random.default_rng(0)
    outputs = [jnp.asarray(rng.standard_normal((2, 5, 3, 4)), dtype) for _ in range(count)]
    lses = [jnp.asarray(rng.standard_normal((2, 5, 3)), dtype) for _ in range(count)]
    return outputs, lses


def test_one_part_comes_back():
    (out,), (lse,) = parts(count=1)
    merged, merged_lse = natjax.merge_attentions([out], [lse])
    np.testing.assert_allclose(merged, out, rtol=1e-6)
    np.testing.assert_allclose(merged_lse, lse, rtol=1e-6)


def test_halves_of_the_keys_make_the_whole():
    rng = np.random.default_rng(0)
    q, k, v, k2, v2 = jnp.asarray(rng.standard_normal((5, 1, 12, 2, 8)), jnp.float32)
    one = natjax.na1d(q, k, v, 5, return_lse=True)
    two = natjax.na1d(q, k2, v2, 12, return_lse=True)
    out, lse = natjax.merge_attentions(*zip(one, two, strict=True))
    expected = natjax.na1d(q, k, v, 5, additional_keys=k2, additional_values=v2, return_lse=True)
    np.testing.assert_allclose(out, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)


def test_empty_parts_do_not_count():
    (a, b), (x, _) = parts(count=2)
    empty = jnp.full_like(x, -jnp.inf)
    out, lse = natjax.merge_attentions([a, b], [x, empty])
    np.testing.assert_allclose(out, a, rtol=1e-6)
    np.testing.assert_allclose(lse, x, rtol=1e-6)
    out, lse = natjax.merge_attentions([a, b], [empty, empty])
    assert (out == 0).all()
    assert np.isneginf(lse).all()


def test_empty_parts_have_gradients_of_zero():
    def total(x, lse):
        out, merged = natjax.merge_attentions((x, 2 * x), (lse, lse - 1))
        return jnp.sum(out) + jnp.sum(jnp.where(jnp.isfinite(merged), merged, 0.0))

    x, lse = jnp.ones((3, 1, 2)), jnp.array([[-jnp.inf], [0.0], [1.0]])
    for gradient in jax.grad(total, argnums=(0, 1))(x, lse):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[0], 0)


def test_far_apart_lses_do_not_overflow():
    (a, b), (x, y) = parts(count=2)
    out, lse = natjax.merge_attentions([a, b], [x + 1e4, y - 1e4])
    np.testing.assert_allclose(out, a, rtol=1e-6)
    np.testing.assert_allclose(lse, x + 1e4)


def test_gradients(x64):
    outputs, lses = parts(jnp.float64)

    def merge(*parts):
        return natjax.merge_attentions(*jax.tree.map(jnp.asarray, parts))

    check_grads(merge, (outputs, lses), order=2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    outputs, lses = parts(dtype)
    out, lse = natjax.merge_attentions(outputs, lses)
    assert out.dtype == dtype
    assert lse.dtype == jnp.float32
    exact, _ = natjax.merge_attentions(
        [x.astype(jnp.float32) for x in outputs], [x.astype(jnp.float32) for x in lses]
    )
    np.testing.assert_array_equal(out, exact.astype(dtype))


def test_under_jit_and_vmap():
    outputs, lses = parts()
    expected, _ = natjax.merge_attentions(outputs, lses)
    actual, _ = jax.jit(jax.vmap(natjax.merge_attentions))(outputs, lses)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, x: ([], []), "same number"),
        (lambda o, x: (o, x[:1]), "got 3 and 1"),
        (lambda o, x: ([o[0][:, :2], *o[1:]], x), "share shape and dtype"),
        (lambda o, x: (o, [x[0][:, :2], *x[1:]]), "without the last axis"),
        (lambda o, x: ([o[0].astype(jnp.float16), *o[1:]], x), "float16"),
    ],
)
def test_bad_parts(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        natjax.merge_attentions(*change(*parts()))
