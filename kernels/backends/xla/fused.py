"""The fused op of implementation "xla": tiles of queries against slabs of keys, in plain JAX."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from natjax.kernels.backends.xla.layout import (
    by_key_head,
    by_query_head,
    by_token,
    key_boxes,
    merge_axes,
    new_queries,
    query_boxes,
    split_axes,
)
from natjax.kernels.backends.xla.penalty import HIDDEN, Penalty
from natjax.kernels.backends.xla.tiles import AxisTiles, choose_tiles
from natjax.kernels.backends.xla.walk import Boxes, Walk
from natjax.kernels.checks import accumulation_dtype, product_precision
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.device_parts import on_device_parts

# Cost of moving a key into a slab, in logits: `python benchmarks/ops.py --sweep` on a CPU.
_SLAB_OVERHEAD = 64
# Logits computed at once: on a CPU what its caches hold, elsewhere what keeps the device busy.
_LOGITS_AT_ONCE = {"cpu": 2**20}
_LOGITS_AT_ONCE_ELSEWHERE = 2**26


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
    """See `natjax.kernels.backends.reference.attention`."""
    attend = functools.partial(_attention, neighborhood=neighborhood, scale=scale)
    extra = () if additional_keys is None else (additional_keys, additional_values)
    return on_device_parts(attend, (query, key, value, extra), rpb)


def _attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    extra: tuple[Array, ...],
    rpb: Float[Array, "N *R"] | None,
    *,
    neighborhood: Neighborhood,
    scale: float,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    budget = _LOGITS_AT_ONCE.get(jax.default_backend(), _LOGITS_AT_ONCE_ELSEWHERE)
    # Batch and heads are computed together. A batch of a size that is not known counts as 1.
    batch = query.shape[0] if isinstance(query.shape[0], int) else 1
    budget //= max(1, batch * query.shape[-2])
    tiles = choose_tiles(neighborhood, _SLAB_OVERHEAD, budget)
    dtype = accumulation_dtype(query.dtype)
    heads = key.shape[-2], query.shape[-2] // key.shape[-2]
    penalty = Penalty(tiles, heads, rpb is not None)
    queries, keys = query_boxes(tiles), key_boxes(tiles)
    q, k, v = (split_axes(x, tiles) for x in (query, key, value))
    step = functools.partial(
        _attend, tiles=tiles, penalty=penalty, scale=scale, precision=product_precision(query.dtype)
    )
    count = math.prod(axis.count for axis in tiles)
    walk = Walk(
        function=step,
        reads=(queries, keys, keys, *penalty.boxes(), *(Boxes.whole(x.ndim) for x in extra)),
        writes=(queries, queries),
        outputs=(
            jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), query.dtype),
            jax.ShapeDtypeStruct((*q.shape[:-1], 1), dtype),
        ),
        tiles=count,
        at_once=_divisor(count, budget // math.prod(axis.size * axis.halo for axis in tiles)),
    )
    out, lse = walk(q, k, v, *penalty.inputs(rpb, dtype), *extra)
    return merge_axes(out, tiles), merge_axes(lse, tiles)[..., 0]


def _attend(
    tile: Int[Array, ""],
    q: Float[Array, "B *t N D"],
    k: Float[Array, "B *h M D"],
    v: Float[Array, "B *h M Dv"],
    *rest: Array,
    tiles: tuple[AxisTiles, ...],
    penalty: Penalty,
    scale: float,
    precision: str | None,
) -> tuple[Float[Array, "B *t N Dv"], Float[Array, "B *t N 1"]]:
    """Attention of one tile to its slab and to the additional keys: output and lse."""
    number = len(penalty.boxes())
    added = penalty.of_tile(tile, rest[:number], q.dtype)[None]
    tokens, (heads, groups) = q.shape[1:-2], penalty.heads
    q = by_query_head(q, (heads, groups))
    k, v, *extra = map(by_key_head, (k, v, *rest[number:]))
    product = functools.partial(jnp.einsum, precision=precision)
    products = scale * product("bmqd,bmkd->bmqk", q, k)
    grouped = products.reshape(*q.shape[:2], groups, *added.shape[3:])
    # Selected, since nan plus a penalty would be nan, and reach queries that do not see the key.
    seen = jnp.where(added > HIDDEN / 2, grouped + added, jnp.asarray(HIDDEN, q.dtype))
    logits, values = [seen.reshape(products.shape)], [v]
    if extra:
        logits.append(scale * product("bmqd,bmed->bmqe", q, extra[0]))
        values.append(extra[1])
    # Every shift gives the same result, so this one needs no gradient.
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    top = jax.lax.stop_gradient(top)
    probs = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in probs)
    out = sum(product("bmqk,bmkd->bmqd", x / total, y) for x, y in zip(probs, values, strict=True))
    out, lse = (by_token(x, groups, tokens) for x in (out, top + jnp.log(total)))
    is_new = new_queries(tile, tiles)
    if is_new is None:
        return out, lse
    return jnp.where(is_new[None], out, 0), jnp.where(is_new[None], lse, 0)


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, at least 1."""
    return next(n for n in range(max(1, min(number, limit)), 0, -1) if number % n == 0)
