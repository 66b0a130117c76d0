"""Attention of one tile to its slab and to the additional keys, and its cotangents."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.backends.xla.layout import (
    by_key,
    by_key_head,
    by_query_head,
    by_token,
    new_queries,
)
from natjax.kernels.backends.xla.penalty import HIDDEN, Penalty, in_force
from natjax.kernels.backends.xla.tiles import Tiles
from natjax.kernels.backends.xla.walk import Arrays
from natjax.kernels.device import computed_once
from natjax.kernels.weighting import Dropout, dropout_factors, soft_cap_slope, soft_capped


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Keys:
    """Keys that a tile attends to: those of its slab, or the additional ones.

    Attributes:
      name: of the keys, of what the tile reads.
      of_values: name of their values.
      key: the keys.
      value: their values.
      products: with the scaled queries, soft-capped.
      logits: products and penalty.
      is_seen: which query sees which key; None where all do.
      factors: of dropout on the weights; None without it.
    """

    name: str
    of_values: str
    key: Float[Array, "B M k D"]
    value: Float[Array, "B M k Dv"]
    products: Float[Array, "B M Q k"]
    logits: Float[Array, "B M Q k"]
    is_seen: Bool[Array, "#B M Q k"] | None
    factors: Float[Array, "B M Q k"] | None

    def dropped(self, x: Float[Array, "B M Q k"]) -> Float[Array, "B M Q k"]:
        """Weights, or cotangents of weights, after dropout."""
        return x if self.factors is None else x * self.factors


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """Attention of one tile to its slab and to the additional keys.

    Attributes:
      names: of what is read.
      penalty: what is added to logits, which knows the tiles too.
      scale: factor on the products of queries and keys.
      soft_cap: bound of these, if any.
      rate: of dropout.
      precision: of products.
      num_tokens: keys of the map.
    """

    names: tuple[str, ...]
    penalty: Penalty
    scale: float
    soft_cap: float | None
    rate: float
    precision: str | None
    num_tokens: int

    def __call__(
        self, tile: Int[Array, ""], *boxes: Array
    ) -> tuple[Float[Array, "B *t N Dv"], Float[Array, "B *t N 1"]]:
        """Output and log-sum-exp of the queries that no tile before has; zeros of the others."""
        read = dict(zip(self.names, boxes, strict=True))
        sets = self._sets_of_keys(tile, read)
        weights, total, lse = _softmax([keys.logits for keys in sets])
        parts = (
            self._product("bmqk,bmkd->bmqd", keys.dropped(w), keys.value)
            for keys, w in zip(sets, weights, strict=True)
        )
        # Divided last: there are fewer channels than keys.
        out, lse = (self._by_token(x, read["query"]) for x in (sum(parts) / total, lse))
        return self._of_new_queries(tile, out), self._of_new_queries(tile, lse)

    def pull(
        self, tile: Int[Array, ""], boxes: Arrays, results: Arrays, cotangents: Arrays
    ) -> list[Array | None]:
        """Cotangents of what is read, None of masks and numbers.

        Weights follow from the log-sum-exp, without the maximum and the sum that forward needs,
        and the softmax's mean of their cotangents from the output (Dao, *FlashAttention-2*, 2023).
        """
        read = dict(zip(self.names, boxes, strict=True))
        (out, lse), heads = results, self.penalty.heads
        d_out, d_lse = (self._of_new_queries(tile, x) for x in cotangents)
        shift = d_lse - jnp.sum(out * d_out, axis=-1, keepdims=True)
        # Where a query sees no key, all logits are so low that weights are zero for any finite lse.
        lse = jnp.where(jnp.isneginf(lse), jnp.zeros_like(lse), lse)
        query, d_out, lse, shift = (
            by_query_head(x, heads) for x in (read["query"], d_out, lse, shift)
        )
        pulled: dict[str, Array] = {}
        d_query = jnp.zeros_like(query)
        for keys in self._sets_of_keys(tile, read):
            weights = jnp.exp(keys.logits - lse)
            d_weights = keys.dropped(self._product("bmqd,bmkd->bmqk", d_out, keys.value))
            d_logits = weights * (d_weights + shift)
            if keys.is_seen is not None:
                d_logits = jnp.where(keys.is_seen, d_logits, jnp.zeros_like(d_logits))
            d_logits = computed_once(d_logits)
            if keys.name == "key" and self.penalty.has_bias:
                pulled["penalty"] = self._pull_penalty(tile, read, d_logits)
            if self.soft_cap is not None:
                slope = soft_cap_slope(keys.products, self.soft_cap)
                d_logits = computed_once(d_logits * slope)
            d_query += self._product("bmqk,bmkd->bmqd", d_logits, keys.key)
            d_key = self._sum_over_queries(d_logits, self.scale * query)
            d_value = self._sum_over_queries(keys.dropped(weights), d_out)
            pulled[keys.name] = by_key(d_key, read[keys.name].shape[1:-2])
            pulled[keys.of_values] = by_key(d_value, read[keys.of_values].shape[1:-2])
        pulled["query"] = self._by_token(self.scale * d_query, read["query"])
        return [pulled.get(name) for name in self.names]

    def _product(self, spec: str, x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x, y, precision=self.precision)

    def _sum_over_queries(
        self, weights: Float[Array, "B M Q k"], x: Float[Array, "B M Q D"]
    ) -> Float[Array, "B M k D"]:
        """For each key, the sum of ``x`` over queries, weighted.

        XLA for CPUs is half as fast where it has to transpose the weights, of which there are
        more. So the smaller operand is transposed, and the result.
        """
        x = computed_once(jnp.swapaxes(x, -1, -2))
        summed = computed_once(self._product("bmdq,bmqk->bmdk", x, weights))
        return jnp.swapaxes(summed, -1, -2)

    def _by_token(
        self, x: Float[Array, "B M Q Dv"], query: Float[Array, "B *t N D"]
    ) -> Float[Array, "B *t N Dv"]:
        return by_token(x, self.penalty.heads[1], query.shape[1:-2])

    def _of_new_queries(
        self, tile: Int[Array, ""], x: Float[Array, "B *t N D"]
    ) -> Float[Array, "B *t N D"]:
        """Zeros for queries that a tile before has."""
        is_new = new_queries(tile, self.penalty.tiles)
        return x if is_new is None else jnp.where(is_new[None], x, jnp.zeros_like(x))

    def _sets_of_keys(self, tile: Int[Array, ""], read: dict[str, Array]) -> list[_Keys]:
        """The keys of the slab, and the additional ones if there are any."""
        query = self.scale * by_query_head(read["query"], self.penalty.heads)
        sets = [self._slab(tile, read, query)]
        if "extra_keys" in read:
            key, value = (by_key_head(read[name]) for name in ("extra_keys", "extra_values"))
            products = self._products(query, key)
            # They come after all tokens of the map.
            factors = self._factors(tile, read, self.num_tokens, products)
            names = "extra_keys", "extra_values"
            sets.append(_Keys(*names, key, value, products, products, None, factors))
        return sets

    def _slab(
        self, tile: Int[Array, ""], read: dict[str, Array], query: Float[Array, "B M Q D"]
    ) -> _Keys:
        key, value = by_key_head(read["key"]), by_key_head(read["value"])
        products = self._products(query, key)
        added = self.penalty.of_tile(tile, read.get("penalty"), read["part"], query.dtype)[None]
        # Selected: nan plus a penalty would be nan, and reach queries that do not see the key.
        is_seen = added > HIDDEN / 2
        if "key_mask" in read:
            is_seen = is_seen & by_key_head(read["key_mask"])[:, :, None, None, :, 0]
        of_heads = (*products.shape[:2], self.penalty.heads[1], *added.shape[3:])
        hidden = jnp.asarray(HIDDEN, query.dtype)
        logits = jnp.where(is_seen, products.reshape(of_heads) + added, hidden)
        is_seen = jnp.broadcast_to(is_seen, logits.shape)
        return _Keys(
            name="key",
            of_values="value",
            key=key,
            value=value,
            products=products,
            logits=logits.reshape(products.shape),
            is_seen=is_seen.reshape(products.shape),
            factors=self._factors(tile, read, None, products),
        )

    def _products(
        self, query: Float[Array, "B M Q D"], key: Float[Array, "B M k D"]
    ) -> Float[Array, "B M Q k"]:
        """Products of scaled queries and keys, as the soft cap leaves them."""
        return soft_capped(self._product("bmqd,bmkd->bmqk", query, key), self.soft_cap)

    def _pull_penalty(
        self, tile: Int[Array, ""], read: dict[str, Array], d_logits: Float[Array, "B M Q k"]
    ) -> Array:
        """Cotangent of what the penalty has read, which all images share."""

        def added(x: Array) -> Array:
            return self.penalty.of_tile(tile, x, read["part"], d_logits.dtype)

        made, pull = jax.vjp(added, read["penalty"])
        return pull(d_logits.sum(axis=0).reshape(made.shape))[0]

    def _factors(
        self,
        tile: Int[Array, ""],
        read: dict[str, Array],
        first: int | None,
        like: Float[Array, "B M Q k"],
    ) -> Float[Array, "B M Q k"] | None:
        """Of dropout, on weights of keys numbered from ``first``; None for those of the slab."""
        if "seeds" not in read:
            return None
        tiles = self.penalty.tiles
        number = functools.partial(_token_numbers, tile, tiles, read["part"])
        queries = number([t.query_tokens for t in tiles])
        if first is None:
            keys = number([t.key_tokens for t in tiles])
        else:
            keys = first + jnp.arange(like.shape[-1], dtype=jnp.int32)
        dropout = Dropout(read["seeds"], self.rate)
        seeds = dropout.seeds.reshape(-1, *self.penalty.heads, 2)
        return dropout_factors(dropout, seeds, queries, keys, like.dtype).reshape(like.shape)


def _token_numbers(
    tile: Int[Array, ""],
    tiles: Tiles,
    part: Int[Array, "axes"],
    tokens: list[Int[np.ndarray, "_ _ _"]],
) -> Int[Array, "_"]:
    """The number that each token of a box has among all of the map, row-major."""
    numbers = jnp.unravel_index(tile, [axis.count for axis in tiles])
    total = jnp.zeros(1, jnp.int32)
    for j, (axis, number) in enumerate(zip(tiles, numbers, strict=True)):
        along = in_force(tokens[j], part, j, number)
        total = (total[:, None] * axis.window.length + along[None]).reshape(-1)
    return total


def _softmax(
    logits: list[Float[Array, "B M Q _"]],
) -> tuple[list[Float[Array, "B M Q _"]], Float[Array, "B M Q 1"], Float[Array, "B M Q 1"]]:
    """Weights over several sets of keys, what to divide them by, and the log-sum-exp.

    Where all keys are hidden, weights of zero, one, and -inf.
    """
    # Every shift gives the same result, so this one needs no gradient.
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    top = jax.lax.stop_gradient(top)
    sees_none = top <= HIDDEN / 2
    top = jnp.where(sees_none, jnp.zeros_like(top), top)
    weights = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    total = jnp.where(sees_none, jnp.ones_like(total), total)
    lse = jnp.where(sees_none, -jnp.inf, top + jnp.log(total))
    return weights, total, lse
