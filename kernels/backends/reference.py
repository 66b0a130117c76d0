"""The definition of the ops: dense, masked, and short enough to check by eye.

Every token's logits against every other token are computed and all but the neighborhood is
discarded, so time and memory grow with the square of the tokens. Use it to check other
implementations, and for tiny inputs.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.neighborhood import Neighborhood


@functools.partial(jax.jit, static_argnames=("neighborhood", "scale"))
def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """Softmax over the neighborhood and any additional keys; returns the output and its lse."""
    q, k, v = _flat(query), _flat(key, query), _flat(value, query)
    logits = scale * jnp.einsum("bqnd,bknd->bnqk", q, k, precision="highest")
    if rpb is not None:
        logits += rpb.astype(logits.dtype)[:, *neighborhood.dense_bias_index()][None]
    logits = jnp.where(neighborhood.dense_mask()[None, None], logits, -jnp.inf)
    if additional_keys is not None and additional_values is not None:
        extra_k, extra_v = _flat(additional_keys, query), _flat(additional_values, query)
        extra = scale * jnp.einsum("bqnd,bknd->bnqk", q, extra_k, precision="highest")
        logits = jnp.concatenate([logits, extra], axis=-1)
        v = jnp.concatenate([v, extra_v], axis=1)
    lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    out = jnp.einsum("bnqk,bknd->bqnd", jnp.exp(logits - lse), v, precision="highest")
    out = out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)
    return out, jnp.moveaxis(lse[..., 0], 1, 2).reshape(query.shape[:-1])


@functools.partial(jax.jit, static_argnames=("neighborhood", "scale"))
def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
) -> Float[Array, "B *X N K"]:
    """Logits of every window slot, ``-inf`` in the empty slots of causal windows."""
    q, k = _flat(query), _flat(key, query)
    neighbors, visible = neighborhood.neighbor_table()
    logits = scale * jnp.einsum("btnd,btknd->btnk", q, k[:, neighbors], precision="highest")
    if rpb is not None:
        index = (
            x[np.arange(neighborhood.num_tokens)[:, None], neighbors]
            for x in neighborhood.dense_bias_index()
        )
        logits += jnp.moveaxis(rpb.astype(logits.dtype)[:, *index], 0, 1)[None]
    logits = jnp.where(visible[None, :, None], logits, -jnp.inf)
    return logits.reshape(*query.shape[:-1], neighborhood.num_neighbors).astype(query.dtype)


@functools.partial(jax.jit, static_argnames=("neighborhood",))
def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
) -> Float[Array, "B *X N Dv"]:
    """Sum of the window's values, weighted; weights of empty slots are ignored."""
    w, v = _flat(weights), _flat(value, weights)
    neighbors, visible = neighborhood.neighbor_table()
    w = jnp.where(visible[None, :, None], w, 0)
    out = jnp.einsum("btnk,btknd->btnd", w, v[:, neighbors], precision="highest")
    return out.reshape(*weights.shape[:-1], value.shape[-1]).astype(weights.dtype)


def _flat(array: Array, query: Array | None = None) -> Array:
    """Flatten the tokens, raise to the accumulation dtype, repeat heads to those of ``query``."""
    array = array.reshape(array.shape[0], math.prod(array.shape[1:-2]), *array.shape[-2:])
    array = array.astype(accumulation_dtype(array.dtype))
    repeats = 1 if query is None else query.shape[-2] // array.shape[-2]
    return jnp.repeat(array, repeats, axis=-2)
