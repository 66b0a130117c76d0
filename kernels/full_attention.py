"""Attention of every query to every key, in plain JAX, that never holds all logits at once."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from natjax.kernels.checks import accumulation_dtype, product_precision
from natjax.kernels.weighting import soft_capped

# Logits computed at once: on a CPU what its caches hold, elsewhere what keeps the device busy.
_LOGITS_AT_ONCE = {"cpu": 2**21}
_LOGITS_AT_ONCE_ELSEWHERE = 2**26


def attend_to_all(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S M D"],
    value: Float[Array, "B S M Dv"],
    key_mask: Bool[Array, "B S"] | None = None,
    *,
    scale: float,
    soft_cap: float | None = None,
) -> tuple[Float[Array, "B T N Dv"], Float[Array, "B T N"]]:
    """Output and log-sum-exp, some queries at a time, whose logits are computed anew in reverse.

    Args:
      query: queries.
      key: keys; heads are grouped as in `natjax.na2d`.
      value: values.
      key_mask: False hides a key.
      scale: factor on the products of queries and keys.
      soft_cap: bound of the products.
    """
    heads = key.shape[2]
    attend = functools.partial(
        _attend, key=key, value=value, key_mask=key_mask, scale=scale, soft_cap=soft_cap
    )
    queries = jnp.moveaxis(query, 1, 0)
    groups = queries.shape[2] // heads
    queries = queries.reshape(*queries.shape[:2], heads, groups, queries.shape[-1])
    budget = _LOGITS_AT_ONCE.get(jax.default_backend(), _LOGITS_AT_ONCE_ELSEWHERE)
    at_once = budget // max(1, math.prod(query.shape[::2][:2]) * key.shape[1])
    if at_once >= query.shape[1]:
        out, lse = jax.vmap(jax.checkpoint(attend))(queries)
    else:
        # A loop body is its own scope for common subexpressions.
        attend = jax.checkpoint(attend, prevent_cse=False)
        out, lse = jax.lax.map(attend, queries, batch_size=max(1, at_once))
    shape = query.shape[:-1]
    out, lse = jnp.moveaxis(out, 0, 1), jnp.moveaxis(lse, 0, 1)
    return out.reshape(*shape, value.shape[-1]).astype(query.dtype), lse.reshape(shape)


def _attend(
    query: Float[Array, "B M G D"],
    *,
    key: Float[Array, "B S M D"],
    value: Float[Array, "B S M Dv"],
    key_mask: Bool[Array, "B S"] | None,
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Array, "B M G Dv"], Float[Array, "B M G"]]:
    """One query of each image."""
    dtype = accumulation_dtype(query.dtype)
    product = functools.partial(
        jnp.einsum, precision=product_precision(query.dtype), preferred_element_type=dtype
    )
    logits = soft_capped(scale * product("bmgd,bsmd->bmgs", query, key), soft_cap)
    if key_mask is None:
        lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - lse)
    else:
        shown = key_mask[:, None, None]
        sees_none = ~jnp.any(shown, axis=-1, keepdims=True)
        # Of -inf less -inf, nan would be made.
        lse = jax.nn.logsumexp(jnp.where(shown | sees_none, logits, -jnp.inf), -1, keepdims=True)
        weights = jnp.where(shown, jnp.exp(jnp.where(shown, logits - lse, 0.0)), 0.0)
        lse = jnp.where(sees_none, -jnp.inf, lse)
    out = product("bmgs,bsmd->bmgd", weights, value.astype(dtype))
    return out, lse[..., 0]
