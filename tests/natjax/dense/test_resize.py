"""Interpolation and pooling against what their definitions say, pixel by pixel."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.resize import adaptive_average_pool, resize_bilinear

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def _map(size, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(dtype)


def _interpolated(x, axis, length):
    """One axis: centres of pixels, clamped at the ends."""
    old = x.shape[axis]
    at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, old - 1)
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share


@hypothesis.given(sizes, sizes)
@hypothesis.settings(max_examples=15)
def test_bilinear(old, new):
    x = _map(old)
    expected = _interpolated(_interpolated(x, 1, new[0]), 2, new[1])
    with jax.enable_x64(True):
        actual = resize_bilinear(jnp.asarray(x), new)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, expected, atol=1e-12)


@hypothesis.given(sizes, sizes)
@hypothesis.settings(max_examples=15)
def test_adaptive_average(old, cells):
    x = _map(old)
    expected = np.empty((2, *cells, 3))
    for i in range(cells[0]):
        for j in range(cells[1]):
            rows = slice(i * old[0] // cells[0], -(-(i + 1) * old[0] // cells[0]))
            columns = slice(j * old[1] // cells[1], -(-(j + 1) * old[1] // cells[1]))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    with jax.enable_x64(True):
        actual = adaptive_average_pool(jnp.asarray(x), cells)
        np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_the_present_size_is_the_map_itself():
    x = jnp.ones((1, 3, 4, 2), jnp.bfloat16)
    assert resize_bilinear(x, (3, 4)) is x


@pytest.mark.parametrize("resize", [resize_bilinear, adaptive_average_pool])
def test_half_precision_is_computed_in_float32(resize):
    x = jnp.asarray(_map((5, 7), np.float32), jnp.bfloat16)
    exact = resize(x.astype(jnp.float32), (3, 11))
    actual = resize(x, (3, 11))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(actual, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("resize", [resize_bilinear, adaptive_average_pool])
@pytest.mark.usefixtures("unchecked")
def test_sizes_must_be_positive(resize):
    with pytest.raises(ValueError, match=r"size must be an integer >= 1 .*got \(0, 3\)"):
        resize(jnp.ones((1, 2, 2, 1)), (0, 3))


def test_gradients_have_no_scatter():
    def run(x):
        return jnp.sum(resize_bilinear(x, (9, 4)) ** 2) + jnp.sum(adaptive_average_pool(x, 3) ** 2)

    text = jax.jit(jax.grad(run)).lower(jnp.ones((1, 5, 6, 2))).as_text()
    assert "scatter" not in text
    assert "dot_general" in text
