"""What the public ops have in common: check the arguments once, then hand over."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from natjax.kernels import checks, registry
from natjax.kernels.merge import merge_attentions
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.explicit import typed_like_first
from natjax.kernels.weighting import draw_dropout

# A name, or an alias, of `natjax.kernels.registry.IMPLEMENTATIONS`.
type Implementation = str


class Window:
    """Arguments of `natjax.kernels.checks.neighborhood` but the tokens, as users wrote them."""

    def __init__(self, kernel_size: Any, **options: Any):
        self._kernel_size, self._options = kernel_size, options

    @property
    def apart(self) -> bool:
        """Whether queries and keys may be on other tokens."""
        o = self._options
        parts = (o["query_offset"], o["key_offset"], o["length"])
        return o["query_ratio"] != 1 or any(x is not None for x in parts)

    def neighborhood(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> Neighborhood:
        """The neighborhood, checked."""
        return checks.neighborhood(keys, self._kernel_size, **self._options, queries=queries)


def attention(
    ndim: int,
    arrays: tuple[Array, Array, Array],
    window: Window,
    *,
    rpb: Array | None,
    scale: float | None,
    key_mask: Array | None,
    additional: tuple[Array | None, Array | None],
    sinks: Array | None,
    soft_cap: float | None,
    dropout: tuple[float, Array | None],
    return_lse: bool,
    implementation: Implementation | None,
) -> Any:
    """`natjax.na2d` and its siblings."""
    neighborhood = _checked_neighborhood(ndim, arrays, window)
    query, key, value = arrays
    checks.additional(*additional, key, value)
    checks.bias(rpb, query, neighborhood)
    checks.key_mask(key_mask, "key", key)
    checks.dropout(*dropout)
    checks.sinks(sinks, query)
    options = {
        "scale": checks.attention_scale(scale, query.shape[-1]),
        "soft_cap": checks.soft_cap(soft_cap),
    }
    rate, dropout_key = dropout

    def attend(
        query: Array, key: Array, value: Array, rpb: Any, keys: Any, values: Any, *more: Any
    ) -> Any:
        key_mask, sinks, dropout_key = more
        problems = query.shape[0], query.shape[-2]
        dropout = draw_dropout(dropout_key, rate, *problems) if rate else None
        out, lse = registry.call(
            "attention",
            implementation,
            query,
            shown(key, key_mask),
            shown(value, key_mask),
            neighborhood,
            rpb=rpb,
            additional_keys=keys,
            additional_values=values,
            key_mask=key_mask,
            dropout=dropout,
            **options,
        )
        return (out, lse) if sinks is None else with_sinks(out, lse, sinks)

    kept = (query.ndim - 1,) * 2
    more = (key_mask, sinks, dropout_key if rate else None)
    out, lse = typed_like_first(attend, (*arrays, rpb, *additional, *more), kept)
    return (out, lse) if return_lse else out


def _checked_neighborhood(
    ndim: int, arrays: tuple[Array, Array, Array], window: Window
) -> Neighborhood:
    query, key, value = arrays
    checks.query_and_key(ndim, query, key, apart=window.apart)
    checks.tokens("value", value, ndim)
    checks.same_tokens("value", value, *(("key", key) if window.apart else ("query", query)))
    checks.same_size("value", value, "key", key, "heads")
    return window.neighborhood(query.shape[1:-2], key.shape[1:-2])


def shown(x: Array, key_mask: Array | None) -> Array:
    """Keys or values without those that are hidden: 0 times nan would be nan."""
    if key_mask is None:
        return x
    return jnp.where(key_mask[..., None, None], x, jnp.zeros_like(x))


def with_sinks(out: Array, lse: Array, sinks: Array) -> tuple[Array, Array]:
    """Sinks are keys whose values are 0."""
    sinks = sinks.astype(lse.dtype).reshape((1,) * (lse.ndim - 1) + sinks.shape)
    return merge_attentions((out, jnp.zeros_like(out)), (lse, jnp.broadcast_to(sinks, lse.shape)))


def qk(
    ndim: int,
    arrays: tuple[Array, Array],
    window: Window,
    *,
    rpb: Array | None,
    scale: float | None,
    key_mask: Array | None,
    implementation: Implementation | None,
) -> Array:
    """`natjax.na2d_qk` and its siblings."""
    query, key = arrays
    checks.query_and_key(ndim, query, key, apart=window.apart)
    neighborhood = window.neighborhood(query.shape[1:-2], key.shape[1:-2])
    checks.bias(rpb, query, neighborhood)
    checks.key_mask(key_mask, "key", key)
    scale = checks.attention_scale(scale, query.shape[-1])

    def logits(query: Array, key: Array, rpb: Any, key_mask: Any) -> Array:
        key = shown(key, key_mask)
        options = {"rpb": rpb, "scale": scale, "key_mask": key_mask}
        return registry.call("qk", implementation, query, key, neighborhood, **options)

    return typed_like_first(logits, (*arrays, rpb, key_mask), kept=(query.ndim - 1,))


def av(
    ndim: int,
    arrays: tuple[Array, Array],
    window: Window,
    *,
    key_mask: Array | None,
    implementation: Implementation | None,
) -> Array:
    """`natjax.na2d_av` and its siblings."""
    weights, value = arrays
    checks.tokens("weights", weights, ndim)
    checks.tokens("value", value, ndim)
    (checks.same_batch if window.apart else checks.same_tokens)("value", value, "weights", weights)
    checks.grouped_heads(value, weights, "value", "weights")
    neighborhood = window.neighborhood(weights.shape[1:-2], value.shape[1:-2])
    checks.weights(weights, neighborhood)
    checks.key_mask(key_mask, "value", value)

    def weighted_sum(weights: Array, value: Array, key_mask: Any) -> Array:
        value = shown(value, key_mask)
        return registry.call("av", implementation, weights, value, neighborhood, key_mask=key_mask)

    return typed_like_first(weighted_sum, (*arrays, key_mask), kept=(weights.ndim - 1,))
