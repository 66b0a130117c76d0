"""Building blocks: dropout, norm, patches, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.nn import layers

OPTIONS = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def _options(seed=0):
    return OPTIONS | {"rngs": nnx.Rngs(seed)}


@pytest.mark.parametrize("drop", [layers.dropout, layers.drop_path])
def test_drop_is_the_identity_in_evaluation_and_at_rate_zero(drop):
    x = jnp.ones((4, 3, 2))
    assert drop(x, 0.5, None) is x
    assert drop(x, 0.0, nnx.Rngs(0)) is x


def test_dropout_keeps_the_mean():
    x = jnp.ones((100, 100))
    out = np.asarray(layers.dropout(x, 0.25, nnx.Rngs(dropout=0)))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75])
    assert out.mean() == pytest.approx(1, abs=0.03)


def test_drop_path_drops_whole_samples():
    x = jnp.ones((400, 3, 2))
    out = np.asarray(layers.drop_path(x, 0.25, nnx.Rngs(droppath=0)))
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75])
    assert out.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_layer_norm(dtype, tolerance):
    # A mean far from 0, which the E[x^2] - E[x]^2 form of the variance would not survive.
    x = (jax.random.normal(jax.random.key(0), (3, 5, 32)) + 100).astype(dtype)
    norm = layers.LayerNorm(32, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.scale.set_value(jnp.linspace(0.5, 1.5, 32))
    norm.bias.set_value(jnp.linspace(-1, 1, 32))
    exact = np.asarray(x, np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    expected = expected * np.linspace(0.5, 1.5, 32) + np.linspace(-1, 1, 32)
    out = norm(x)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=4 * tolerance, rtol=0)


def test_patch_merging_order_and_padding():
    merging = layers.PatchMerging(1, **_options())
    # Norm and linear layer out of the way: keep entries 1 and 2 of (0,0), (1,0), (0,1), (1,1).
    merging.norm = lambda x: x
    merging.reduction.kernel.set_value(jnp.zeros((4, 2)).at[1, 0].set(1.0).at[2, 1].set(1.0))
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    out = merging(x)
    np.testing.assert_array_equal(out[0, ..., 0], [[3, 5], [0, 0]])  # one row below
    np.testing.assert_array_equal(out[0, ..., 1], [[1, 0], [7, 0]])  # one column right


@pytest.mark.parametrize("size", [(32, 32), (33, 30), (1, 5)])
def test_patch_layers_round_sizes_up(size):
    images = jnp.ones((1, *size, 3))
    quarter, half = ([-(-n // k) for n in size] for k in (4, 2))
    assert layers.ConvTokenizer(3, 8, **_options())(images).shape == (1, *quarter, 8)
    assert layers.PatchTokenizer(3, 8, 4, **_options())(images).shape == (1, *quarter, 8)
    assert layers.ConvDownsampler(3, **_options())(images).shape == (1, *half, 6)
    assert layers.PatchMerging(3, **_options())(images).shape == (1, *half, 6)


def test_initial_values():
    linear = layers.linear(200, 300, **_options())
    assert float(linear.kernel[...].std()) == pytest.approx(0.02, rel=0.02)
    assert float(jnp.abs(linear.kernel[...]).max()) < 0.2
    assert not linear.bias[...].any()
    conv = layers.conv(5, 200, 3, 2, **_options())
    bound = 45**-0.5
    for values in (conv.kernel[...], conv.bias[...]):
        assert float(jnp.abs(values).max()) <= bound
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    norm = layers.LayerNorm(4, **_options())
    np.testing.assert_array_equal([norm.scale[...], norm.bias[...]], [[1] * 4, [0] * 4])


def test_mlp_uses_the_exact_gelu():
    mlp = layers.Mlp(1, 1, **_options())
    for layer in (mlp.fc1, mlp.fc2):
        layer.kernel.set_value(jnp.ones((1, 1)))
    x = jnp.linspace(-3, 3, 25)[:, None]
    expected = x * 0.5 * (1 + jax.scipy.special.erf(x / 2**0.5))
    np.testing.assert_allclose(mlp(x), expected, atol=1e-6)
