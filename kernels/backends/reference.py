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
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.weighting import Dropout, dropout_factors, soft_capped


@functools.partial(jax.jit, static_argnames=("neighborhood", "scale", "soft_cap"))
def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
    key_mask: Bool[Array, "B *Y"] | None = None,
    dropout: Dropout | None = None,
    soft_cap: float | None = None,
    part: Int[Array, "axes"] | None = None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """Softmax over the neighborhood and any additional keys; returns the output and its lse."""
    _require_one_origin(neighborhood, part)
    q, k, v = _flat(query), _flat(key, query), _flat(value, query)
    logits = scale * jnp.einsum("bqnd,bknd->bnqk", q, k, precision="highest")
    logits = soft_capped(logits, soft_cap)
    if rpb is not None:
        logits += rpb.astype(logits.dtype)[:, *neighborhood.dense_bias_index()][None]
    logits = jnp.where(neighborhood.dense_mask()[None, None], logits, -jnp.inf)
    if key_mask is not None:
        logits = jnp.where(_flat_mask(key_mask)[:, None, None], logits, -jnp.inf)
    if additional_keys is not None and additional_values is not None:
        extra_k, extra_v = _flat(additional_keys, query), _flat(additional_values, query)
        extra = scale * jnp.einsum("bqnd,bknd->bnqk", q, extra_k, precision="highest")
        logits = jnp.concatenate([logits, soft_capped(extra, soft_cap)], axis=-1)
        v = jnp.concatenate([v, extra_v], axis=1)
    # A query that sees nothing has weights of 0: of -inf less -inf, nan would be made.
    sees_none = jnp.all(jnp.isneginf(logits), axis=-1, keepdims=True)
    lse = jax.nn.logsumexp(jnp.where(sees_none, 0.0, logits), axis=-1, keepdims=True)
    weights = jnp.exp(logits - lse)
    if dropout is not None:
        weights *= _dropout_factors(dropout, neighborhood, weights)
    out = jnp.einsum("bnqk,bknd->bqnd", weights, v, precision="highest")
    out = out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype)
    lse = jnp.where(sees_none, -jnp.inf, lse)
    return out, jnp.moveaxis(lse[..., 0], 1, 2).reshape(query.shape[:-1])


def _dropout_factors(
    dropout: Dropout, neighborhood: Neighborhood, weights: Float[Array, "B N q k"]
) -> Float[Array, "B N q k"]:
    """What to multiply the weights by; additional keys are numbered after all tokens."""
    queries, keys = neighborhood.token_numbers()
    more = neighborhood.num_tokens + np.arange(weights.shape[-1] - len(keys))
    numbers = jnp.asarray(queries), jnp.asarray(np.concatenate([keys, more]))
    return dropout_factors(dropout, dropout.seeds, *numbers, weights.dtype)


@functools.partial(jax.jit, static_argnames=("neighborhood", "scale"))
def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    key_mask: Bool[Array, "B *Y"] | None = None,
) -> Float[Array, "B *X N K"]:
    """Logits of every window slot, ``-inf`` in slots that are empty or whose key is hidden."""
    q, k = _flat(query), _flat(key, query)
    neighbors, visible = neighborhood.neighbor_table()
    logits = scale * jnp.einsum("btnd,btknd->btnk", q, k[:, neighbors], precision="highest")
    if rpb is not None:
        rows = np.arange(len(neighbors))[:, None]
        index = (x[rows, neighbors] for x in neighborhood.dense_bias_index())
        logits += jnp.moveaxis(rpb.astype(logits.dtype)[:, *index], 0, 1)[None]
    logits = jnp.where(_visible(neighbors, visible, key_mask), logits, -jnp.inf)
    return logits.reshape(*query.shape[:-1], neighborhood.num_neighbors).astype(query.dtype)


@functools.partial(jax.jit, static_argnames=("neighborhood",))
def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *Y M Dv"],
    neighborhood: Neighborhood,
    *,
    key_mask: Bool[Array, "B *Y"] | None = None,
) -> Float[Array, "B *X N Dv"]:
    """Sum of the window's values, weighted; weights of empty slots and hidden keys are ignored."""
    w, v = _flat(weights), _flat(value, weights)
    neighbors, visible = neighborhood.neighbor_table()
    w = jnp.where(_visible(neighbors, visible, key_mask), w, 0)
    out = jnp.einsum("btnk,btknd->btnd", w, v[:, neighbors], precision="highest")
    return out.reshape(*weights.shape[:-1], value.shape[-1]).astype(weights.dtype)


def _visible(
    neighbors: Int[np.ndarray, "T K"],
    visible: Bool[np.ndarray, "T K"],
    key_mask: Bool[Array, "B *Y"] | None,
) -> Bool[Array, "#B T 1 K"]:
    """Which slots hold a key that is not hidden."""
    if key_mask is None:
        return jnp.asarray(visible)[None, :, None]
    return (visible[None] & _flat_mask(key_mask)[:, neighbors])[:, :, None]


def _flat_mask(key_mask: Bool[Array, "B *Y"]) -> Bool[Array, "B k"]:
    return key_mask.reshape(key_mask.shape[0], math.prod(key_mask.shape[1:]))


def _flat(array: Array, query: Array | None = None) -> Array:
    """Flatten the tokens, raise to the accumulation dtype, repeat heads to those of ``query``."""
    array = array.reshape(array.shape[0], math.prod(array.shape[1:-2]), *array.shape[-2:])
    array = array.astype(accumulation_dtype(array.dtype))
    repeats = 1 if query is None else query.shape[-2] // array.shape[-2]
    return jnp.repeat(array, repeats, axis=-2)


def _require_one_origin(neighborhood: Neighborhood, part: Array | None) -> None:
    if part is not None or any(axis.origins != range(1) for axis in neighborhood.axes):
        raise NotImplementedError(
            'implementation "reference" takes one origin along each axis; got '
            f"{[axis.origins for axis in neighborhood.axes]}; use "
            'implementation="xla"'
        )
