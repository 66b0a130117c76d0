"""Calls of the ops on problems, with all gradients, and how far results may differ."""

import functools

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import tolerances

import natjax
from natjax.kernels import registry

# Implementations of kernels, which take no float64 and have first derivatives in reverse mode only;
# off the platform that they are for, they run interpreted.
KERNELS = tuple(name for name, x in registry.available().items() if x.platform is not None)
# Those that decline float32 and most head sizes of the problems here; they have their own tests.
HALF_ONLY = ("mosaic_gpu",)
# What the tests of all implementations are of.
NAMES = tuple(name for name in registry.names() if name not in HALF_ONLY)


def fused(problem, implementation):
    """Output and log-sum-exp as a function of the problem's arrays."""
    op = functools.partial(
        problem.op, **problem.arguments, return_lse=True, implementation=implementation
    )
    return lambda arrays: op(**arrays)


def unfused(problem, implementation):
    """Softmax of the unfused halves; only without additional keys."""
    qk = getattr(natjax, f"na{problem.ndim}d_qk")
    av = getattr(natjax, f"na{problem.ndim}d_av")
    kwargs = {**problem.arguments, "implementation": implementation}

    def run(arrays):
        rpb = arrays.get("rpb")
        weights = jax.nn.softmax(qk(arrays["query"], arrays["key"], rpb=rpb, **kwargs))
        return av(weights, arrays["value"], **kwargs), weights

    return run


def value_and_gradients(function, arrays, seed=1):
    """Outputs and the gradient of a random linear function of them, for each argument."""

    @jax.jit
    def run(arrays):
        outputs, pull = jax.vjp(function, arrays)
        rng = np.random.default_rng(seed)
        cotangents = [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in outputs]
        return outputs, pull(tuple(cotangents))[0]

    return run(arrays)


def assert_close(actual, expected, dtype="float32"):
    for name, x, y in zip(("out", "lse"), actual[0], expected[0], strict=True):
        assert goldens.error(x, y) <= tolerances.VALUE[dtype], name
    # The bias gradient vanishes identically where there is one neighbor.
    for name, y in expected[1].items():
        scale = max(1, np.abs(y).max())
        error = np.abs(actual[1][name] - y).max() / scale
        assert error <= tolerances.GRADIENT[dtype], f"d{name}: {error}"


def assert_reads_what_was_written(function, problem, dtype):
    """Kernels for TPUs, where memory that nobody wrote is nan, give what the reference does."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    arrays = problem.arrays(dtype=dtype)
    exact = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    expected = value_and_gradients(function(problem, "reference"), exact)
    actual = value_and_gradients(function(problem, "mosaic_tpu"), arrays)
    assert not interpret_pallas_call.races.races_found
    if dtype == "float32":
        assert_close(actual, expected)
        return
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        error = np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max()
        assert error < 2**-6


def plain_attention(problem, arrays):
    """Dense masked attention, all of it in the dtype of the inputs."""
    neighborhood = problem.neighborhood
    heads = problem.heads // (problem.kv_heads or problem.heads)

    def flat(x, repeats=heads):
        return jnp.repeat(x.reshape(x.shape[0], -1, *x.shape[-2:]), repeats, axis=-2)

    q, k, v = flat(arrays["query"], 1), flat(arrays["key"]), flat(arrays["value"])
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5
    if problem.rpb:
        logits += arrays["rpb"][:, *neighborhood.dense_bias_index()][None]
    logits = jnp.where(neighborhood.dense_mask()[None, None], logits, -jnp.inf)
    if "additional_keys" in arrays:
        extra = jnp.einsum("bqnd,bknd->bnqk", q, flat(arrays["additional_keys"]))
        logits = jnp.concatenate([logits, extra * q.shape[-1] ** -0.5], axis=-1)
        v = jnp.concatenate([v, flat(arrays["additional_values"])], axis=1)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    out = jnp.einsum("bnqk,bknd->bqnd", jnp.exp(logits - lse), v)
    shape = arrays["query"].shape[:-1]
    lse = jnp.moveaxis(lse[..., 0], 1, 2).reshape(shape).astype(jnp.float32)
    return out.reshape(*shape, -1), lse
