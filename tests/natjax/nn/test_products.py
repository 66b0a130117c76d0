"""Layers in mixed precision: plain Flax layers but for how exact the parameters' gradients are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.nn import layers

MIXED = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
PLAIN = {"linear": nnx.Linear, "conv": nnx.Conv}


def _layer(kind):
    if kind == "linear":
        return layers.linear(5, 7, rngs=nnx.Rngs(0), **MIXED)
    return layers.conv(5, 7, 3, 2, padding=1, rngs=nnx.Rngs(0), **MIXED)


def _input(dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(1), (8, 17, 12, 5)).astype(dtype)


def _values_and_gradients(call, layer, x, g):
    """Output, and the gradients of ``sum(g * output)``."""
    graph, params = nnx.split(layer)

    def run(params, x):
        return call(nnx.merge(graph, params), x)

    y, gradients = jax.vjp(run, params, x)
    return y, *gradients(g)


@pytest.mark.oldest
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_parameters_get_the_gradient_of_the_rounded_operands(kind, x64):
    """As exact as float32 sums: rounded to bfloat16 it would be wrong by up to 2**-9."""
    layer, x = _layer(kind), _input()
    g = jnp.cos(jnp.arange(np.prod(layer(x).shape))).astype(jnp.bfloat16).reshape(layer(x).shape)
    y, params, of_x = _values_and_gradients(lambda layer, x: layer(x), layer, x, g)
    plain = PLAIN[kind].__call__
    plain_y, plain_params, plain_of_x = _values_and_gradients(plain, layer, x, g)
    np.testing.assert_array_equal(y, plain_y)
    np.testing.assert_array_equal(of_x, plain_of_x)

    wide = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float64), nnx.state(layer))
    nnx.update(layer, wide)
    layer.dtype = layer.param_dtype = jnp.dtype(jnp.float64)
    _, exact, _ = _values_and_gradients(plain, layer, x.astype(float), g.astype(float))
    for name in ("kernel", "bias"):
        ours, plain, expected = (np.asarray(p[name][...]) for p in (params, plain_params, exact))
        assert ours.dtype == np.float32
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6 * scale)
        assert np.abs(plain - expected).max() > 1e-4 * scale


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_of_every_example(kind):
    layer, x = _layer(kind), _input()
    graph, params = nnx.split(layer)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x), dtype=jnp.float32)

    each = jax.vmap(jax.grad(loss), (None, 0))(params, x[:, None])
    for one, whole in zip(
        jax.tree.leaves(each), jax.tree.leaves(jax.grad(loss)(params, x)), strict=True
    ):
        np.testing.assert_allclose(one.sum(0), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_mode_where_no_precision_is_mixed(dtype):
    layer = layers.linear(5, 7, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    x = _input(dtype)
    y, tangent = jax.jvp(layer, (x,), (x,))
    assert y.dtype == tangent.dtype == dtype
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(_layer("linear"), (_input(),), (_input(),))
