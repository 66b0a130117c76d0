"""What the public ops have in common: check the arguments once, then hand over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from natjax.kernels import checks, registry
from natjax.kernels.merge import merge_attentions
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.explicit import typed_like_first
from natjax.kernels.sharding.space import Space, is_split, space_of
from natjax.kernels.weighting import draw_dropout

# A name, or an alias, of `natjax.kernels.registry.IMPLEMENTATIONS`.
type Implementation = str

# Arguments that say which part of the tokens arrays have.
_PARTS = ("query_offset", "key_offset", "length")


class Window:
    """Arguments of `natjax.kernels.checks.neighborhood` but the tokens, as users wrote them."""

    def __init__(self, kernel_size: Any, **options: Any):
        self._kernel_size, self._options = kernel_size, options

    @property
    def apart(self) -> bool:
        """Whether queries and keys may be on other tokens."""
        given = (self._options[name] is not None for name in _PARTS)
        return self._options["query_ratio"] != 1 or any(given)

    def split(self, space: Space, queries: tuple[int, ...], keys: tuple[int, ...]) -> Neighborhood:
        """The neighborhood of all devices' tokens, checked."""
        if any(self._options[name] is not None for name in _PARTS):
            raise ValueError(
                f"{', '.join(_PARTS)} must be None inside natjax.sharding.space, which gives each "
                "device its part"
            )
        neighborhood = self.neighborhood(space.whole(queries), space.whole(keys))
        space.of_device(neighborhood)
        return neighborhood

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
    space = space_of(ndim)
    neighborhood = _checked_neighborhood(ndim, arrays, window, space)
    query, key, value = arrays
    checks.additional(*additional, key, value)
    checks.bias(rpb, query, neighborhood)
    checks.key_mask(key_mask, "key", key)
    checks.dropout(*dropout)
    checks.sinks(sinks, query)
    rate, dropout_key = dropout
    attend = functools.partial(
        _attend,
        rate=rate,
        implementation=implementation,
        scale=checks.attention_scale(scale, query.shape[-1]),
        soft_cap=checks.soft_cap(soft_cap),
    )

    def run(*operands: Array | None) -> tuple[Array, Array]:
        if space is None:
            return attend(neighborhood, *operands)
        on_device = functools.partial(_attend_on_device, space, attend, neighborhood)
        return space.run(on_device, operands[:4], operands[4:], results=2)

    operands = (*arrays, key_mask, rpb, *additional, sinks, dropout_key if rate else None)
    out, lse = typed_like_first(run, operands, kept=(query.ndim - 1,) * 2)
    return (out, lse) if return_lse else out


def _attend_on_device(
    space: Space,
    attend: Callable[..., Any],
    neighborhood: Neighborhood,
    query: Array,
    key: Array,
    value: Array,
    key_mask: Array | None,
    *shared: Array | None,
) -> tuple[Array, Array]:
    """Attention of a device's queries, among tokens that are split over devices."""
    local = space.of_device(neighborhood)
    arrays = (key, value, key_mask)
    keys = (None if x is None else space.with_halos(x, local) for x in arrays)
    return attend(local, query, *keys, *shared, part=space.part())


def _attend(
    neighborhood: Neighborhood,
    query: Array,
    key: Array,
    value: Array,
    key_mask: Array | None,
    rpb: Array | None,
    additional_keys: Array | None,
    additional_values: Array | None,
    sinks: Array | None,
    dropout_key: Array | None,
    *,
    rate: float,
    implementation: Implementation | None,
    **options: Any,
) -> tuple[Array, Array]:
    """Attention of the queries at hand, and its log-sum-exp."""
    out, lse = registry.call(
        "attention",
        implementation,
        query,
        shown(key, key_mask),
        shown(value, key_mask),
        neighborhood,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        key_mask=key_mask,
        dropout=draw_dropout(dropout_key, rate, query.shape[0], query.shape[-2]) if rate else None,
        **options,
    )
    return (out, lse) if sinks is None else with_sinks(out, lse, sinks)


def _checked_neighborhood(
    ndim: int, arrays: tuple[Array, Array, Array], window: Window, space: Space | None
) -> Neighborhood:
    query, key, value = arrays
    checks.query_and_key(ndim, query, key, apart=window.apart)
    checks.tokens("value", value, ndim)
    checks.same_tokens("value", value, *(("key", key) if window.apart else ("query", query)))
    checks.same_size("value", value, "key", key, "heads")
    queries, keys = query.shape[1:-2], key.shape[1:-2]
    if space is None:
        return window.neighborhood(queries, keys)
    return window.split(space, queries, keys)


def shown(x: Array, key_mask: Array | None) -> Array:
    """Keys or values without those that are hidden: 0 times nan would be nan."""
    if key_mask is None:
        return x
    return jnp.where(key_mask[..., None, None], x, jnp.zeros_like(x))


def with_sinks(out: Array, lse: Array, sinks: Array) -> tuple[Array, Array]:
    """Sinks are keys whose values are 0."""
    sinks = sinks.astype(lse.dtype).reshape((1,) * (lse.ndim - 1) + sinks.shape)
    return merge_attentions((out, jnp.zeros_like(out)), (lse, jnp.broadcast_to(sinks, lse.shape)))


def _require_whole_tokens() -> None:
    if is_split():
        raise NotImplementedError(
            "the unfused ops do not split tokens over devices, as natjax.sharding.space asks for; "
            "use the fused ops, or call these outside of it"
        )


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
    _require_whole_tokens()
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
    _require_whole_tokens()
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
