"""Attention to all keys against the softmax that it is, and how much of it is held at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import natjax

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 3, 5, 4, 6))
KEY = RNG.standard_normal((2, 7, 2, 6))
VALUE = RNG.standard_normal((2, 7, 2, 3))
MASK = np.array([[1, 0, 1, 1, 0, 0, 1], [0] * 7], bool)


def dense(q, k, v, mask):
    k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
    logits = 3 * jnp.tanh(jnp.einsum("bxynd,bknd->bxynk", q, k) * 6**-0.5 / 3)
    weights = jnp.where(mask, jnp.exp(logits), 0.0)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bxynk,bknd->bxynd", weights / jnp.where(total > 0, total, 1.0), v)
    return out, jnp.log(total)[..., 0]


@pytest.mark.parametrize("at_once", [2**21, 100])
def test_is_the_softmax_over_what_is_shown(at_once, x64, monkeypatch):
    monkeypatch.setattr("natjax.kernels.full_attention._LOGITS_AT_ONCE", {"cpu": at_once})
    arrays = tuple(map(jnp.asarray, (QUERY, KEY, VALUE)))
    run = functools.partial(
        natjax.attention, key_mask=jnp.asarray(MASK), logit_soft_cap=3.0, return_lse=True
    )
    shown = jnp.asarray(MASK)[:, None, None, None]
    for x, y in zip(run(*arrays), dense(*arrays, shown), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    if at_once == 100:  # a loop
        check_grads(
            jax.jit(lambda *xs: run(*xs)[0]), arrays, order=1, modes=["fwd", "rev"], rtol=1e-6
        )


def test_is_a_neighborhood_that_holds_the_map(x64):
    q, k, v = (jnp.asarray(RNG.standard_normal((1, 9, 2, 4))) for _ in range(3))
    sinks = jnp.asarray([0.3, -1.0])
    actual = natjax.attention(q, k, v, sinks=sinks, return_lse=True)
    expected = natjax.na1d(q, k, v, 9, sinks=sinks, return_lse=True)
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.optimised
def test_holds_no_logits_of_all_queries():
    q = jax.ShapeDtypeStruct((1, 8192, 2, 16), "float32")
    k = jax.ShapeDtypeStruct((1, 2048, 2, 16), "float32")

    def step(q, k, v):
        out, pull = jax.vjp(natjax.attention, q, k, v)
        return pull(out)

    memory = jax.jit(step).lower(q, k, k).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8192 * 2048 * 2 * 4 / 3


def test_on_a_mesh_with_explicit_axes(mesh_of):
    mesh = mesh_of((2,), ("data",), AxisType.Explicit)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE))
    expected = natjax.attention(q, k, v)
    with jax.set_mesh(mesh):
        placed = (jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (q, k, v))
        actual = jax.jit(natjax.attention)(*placed)
        assert jax.typeof(actual).sharding.spec[0] == "data"
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": KEY[0]}, r"query must have at least 4 dimensions \[B, \*X, N, D\]"),
        ({"key": QUERY}, "key must have 4 dimensions"),
        ({"key": KEY[:1]}, "key must have the batch of query"),
        ({"value": VALUE[:, :4]}, "value must have the batch and tokens of key"),
        ({"key": KEY[..., :5]}, "key must have the head size of query"),
        ({"value": VALUE[:, :, :1]}, "value must have the heads of key"),
        ({"key_mask": MASK[:, :3]}, "key_mask must be booleans with the batch and tokens of key"),
    ],
)
def test_bad_arguments(changes, message, unchecked):
    arguments = {"query": QUERY, "key": KEY, "value": VALUE} | changes
    arguments = {
        k: jnp.asarray(x, bool if k == "key_mask" else "float32") for k, x in arguments.items()
    }
    with pytest.raises(ValueError, match=message):
        natjax.attention(**arguments)
