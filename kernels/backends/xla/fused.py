"""The fused op of implementation "xla": tiles of queries against slabs of keys, in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels import device
from natjax.kernels.backends.xla.layout import (
    by_key_head,
    by_query_head,
    by_token,
    key_boxes,
    merge_queries,
    new_queries,
    place_keys,
    place_queries,
    query_boxes,
)
from natjax.kernels.backends.xla.penalty import HIDDEN, Penalty, in_force
from natjax.kernels.backends.xla.tiles import Tiles, choose_tiles
from natjax.kernels.backends.xla.walk import Boxes, Walk
from natjax.kernels.checks import accumulation_dtype, product_precision
from natjax.kernels.cross_scale import with_more_heads
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.weighting import Dropout, dropout_factors, soft_capped


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """What tiles are chosen by on a platform.

    Attributes:
      slab_overhead: cost of moving a key into a slab, in logits.
      logits_at_once: logits of a step, which has as many tiles as keep to it: on a CPU what caches
        hold, elsewhere what keeps the device busy.
      tiles_at_once: tiles of a step at most, since results are added one tile after the other, each
        an operation to compile.
    """

    slab_overhead: int
    logits_at_once: int
    tiles_at_once: int


# On a CPU by `python benchmarks/ops.py --sweep`, for TPUs by `python -m benchmarks.aot.tpu.tiling`.
TILINGS = {"cpu": Tiling(64, 2**19, 8), "tpu": Tiling(256, 2**19, 8)}
_ELSEWHERE = Tiling(64, 2**26, 32)
# The most logits of a tile, of all images and heads together, which bounds memory. Those of one
# image and head may always be the second number, since smaller tiles mostly move keys.
_LARGEST_TILE = 2**22
_ALWAYS_A_TILE = 2**14


@with_more_heads
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
    """See `natjax.kernels.backends.reference.attention`.

    An axis of the neighborhood may have several `origins`; ``part`` says which of them is in
    force along each axis.
    """
    attend = functools.partial(
        _attention, neighborhood=neighborhood, scale=scale, soft_cap=soft_cap
    )
    extra = None if additional_keys is None else (additional_keys, additional_values)
    mask = None if key_mask is None else key_mask[..., None, None]
    part = jnp.zeros(len(neighborhood.axes), jnp.int32) if part is None else part
    return on_device_parts(attend, (query, key, value, extra, mask, dropout), (rpb, part))


def _attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    extra: tuple[Float[Array, "B E M D"], Float[Array, "B E M Dv"]] | None,
    key_mask: Bool[Array, "B *Y 1 1"] | None,
    dropout: Dropout | None,
    shared: tuple[Float[Array, "N *R"] | None, Int[Array, "axes"]],
    *,
    neighborhood: Neighborhood,
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    rpb, part = shared
    # Batch and heads are computed together. A batch whose size is not known counts as 1.
    batch = query.shape[0] if isinstance(query.shape[0], int) else 1
    problems = max(1, batch * query.shape[-2])
    most_logits = max(_LARGEST_TILE // problems, _ALWAYS_A_TILE)
    tiling = TILINGS.get(device.target().platform, _ELSEWHERE)
    tiles = choose_tiles(neighborhood, tiling.slab_overhead, most_logits)
    heads, dtype = (key.shape[-2], query.shape[-2] // key.shape[-2]), query.dtype
    queries, keys = query_boxes(tiles), key_boxes(tiles)
    penalty = Penalty(tiles, heads, rpb is not None)
    placed = place_queries(query, tiles)
    inputs: dict[str, tuple[Array, Boxes] | None] = {
        "query": (placed, queries),
        "key": (place_keys(key, tiles), keys),
        "value": (place_keys(value, tiles), keys),
        "part": _whole(part),
        "penalty": penalty.read(rpb, part, accumulation_dtype(dtype)),
        "key_mask": None if key_mask is None else (place_keys(key_mask, tiles), keys),
        "seeds": None if dropout is None else _whole(dropout.seeds),
        "extra_keys": None if extra is None else _whole(extra[0]),
        "extra_values": None if extra is None else _whole(extra[1]),
    }
    given = {name: x for name, x in inputs.items() if x is not None}
    count = math.prod(axis.count for axis in tiles)
    logits = problems * math.prod(axis.size * axis.halo for axis in tiles)
    walk = Walk(
        function=_Tile(
            names=tuple(given),
            penalty=penalty,
            scale=scale,
            soft_cap=soft_cap,
            rate=0.0 if dropout is None else dropout.rate,
            precision=product_precision(dtype),
            num_tokens=neighborhood.num_tokens,
        ),
        reads=tuple(boxes for _, boxes in given.values()),
        writes=(queries, queries),
        outputs=(
            jax.ShapeDtypeStruct((*placed.shape[:-1], value.shape[-1]), dtype),
            jax.ShapeDtypeStruct((*placed.shape[:-1], 1), accumulation_dtype(dtype)),
        ),
        tiles=count,
        at_once=_divisor(count, min(tiling.logits_at_once // logits, tiling.tiles_at_once)),
    )
    out, lse = (merge_queries(x, tiles) for x in walk(*(x for x, _ in given.values())))
    return out, lse[..., 0]


def _whole(x: Array) -> tuple[Array, Boxes]:
    return x, Boxes.whole(x.ndim)


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, at least 1."""
    return next(n for n in range(max(1, min(number, limit)), 0, -1) if number % n == 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
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
        query, (_, groups) = read["query"], self.penalty.heads
        values = [by_key_head(read["value"])]
        logits = [self._logits(tile, read)]
        if "extra_keys" in read:
            keys = by_key_head(read["extra_keys"])
            logits.append(self._products(by_query_head(query, self.penalty.heads), keys))
            values.append(by_key_head(read["extra_values"]))
        weights, lse = _softmax(logits)
        if "seeds" in read:
            weights = self._drop(tile, weights, read)
        parts = (self._product("bmqk,bmkd->bmqd", *x) for x in zip(weights, values, strict=True))
        out, lse = (by_token(x, groups, query.shape[1:-2]) for x in (sum(parts), lse))
        is_new = new_queries(tile, self.penalty.tiles)
        if is_new is None:
            return out, lse
        return jnp.where(is_new[None], out, 0), jnp.where(is_new[None], lse, 0)

    def _product(self, spec: str, x: Array, y: Array) -> Array:
        return jnp.einsum(spec, x, y, precision=self.precision)

    def _products(
        self, query: Float[Array, "B M Q D"], key: Float[Array, "B M k D"]
    ) -> Float[Array, "B M Q k"]:
        """Products of queries and keys, as the soft cap leaves them."""
        return soft_capped(self.scale * self._product("bmqd,bmkd->bmqk", query, key), self.soft_cap)

    def _logits(self, tile: Int[Array, ""], read: dict[str, Array]) -> Float[Array, "B M Q k"]:
        """Logits of the slab."""
        query = by_query_head(read["query"], self.penalty.heads)
        products = self._products(query, by_key_head(read["key"]))
        added = self.penalty.of_tile(tile, read.get("penalty"), read["part"], query.dtype)[None]
        # Selected: nan plus a penalty would be nan, and reach queries that do not see the key.
        is_seen = added > HIDDEN / 2
        if "key_mask" in read:
            is_seen = is_seen & by_key_head(read["key_mask"])[:, :, None, None, :, 0]
        grouped = products.reshape(*query.shape[:2], self.penalty.heads[1], *added.shape[3:])
        logits = jnp.where(is_seen, grouped + added, jnp.asarray(HIDDEN, query.dtype))
        return logits.reshape(products.shape)

    def _drop(
        self, tile: Int[Array, ""], weights: list[Array], read: dict[str, Array]
    ) -> list[Array]:
        """Drop weights, those of additional keys too: these come after all tokens of the map."""
        queries, keys = _token_numbers(tile, self.penalty.tiles, read["part"])
        numbers = [keys, self.num_tokens + jnp.arange(weights[-1].shape[-1], dtype=jnp.int32)]
        dropout = Dropout(read["seeds"], self.rate)
        seeds = dropout.seeds.reshape(-1, *self.penalty.heads, 2)
        return [
            w * dropout_factors(dropout, seeds, queries, keys, w.dtype).reshape(w.shape)
            for w, keys in zip(weights, numbers[: len(weights)], strict=True)
        ]


def _token_numbers(
    tile: Int[Array, ""], tiles: Tiles, part: Int[Array, "axes"]
) -> tuple[Int[Array, "q"], Int[Array, "k"]]:
    """The number of each query and of each key of a tile, among all tokens of the map."""
    numbers = jnp.unravel_index(tile, [axis.count for axis in tiles])

    def row_major(tokens: list[np.ndarray]) -> Int[Array, "_"]:
        total = jnp.zeros(1, jnp.int32)
        for j, (axis, number) in enumerate(zip(tiles, numbers, strict=True)):
            along = in_force(tokens[j], part, j, number)
            total = (total[:, None] * axis.window.length + along[None]).reshape(-1)
        return total

    return row_major([t.query_tokens for t in tiles]), row_major([t.key_tokens for t in tiles])


def _softmax(
    logits: list[Float[Array, "B M Q _"]],
) -> tuple[list[Float[Array, "B M Q _"]], Float[Array, "B M Q 1"]]:
    """Weights and log-sum-exp over several sets of keys; zeros and -inf where all are hidden."""
    # Every shift gives the same result, so this one needs no gradient.
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    top = jax.lax.stop_gradient(top)
    sees_none = top <= HIDDEN / 2
    top = jnp.where(sees_none, jnp.zeros_like(top), top)
    weights = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    total = jnp.where(sees_none, jnp.ones_like(total), total)
    lse = jnp.where(sees_none, -jnp.inf, top + jnp.log(total))
    return [x / total for x in weights], lse
