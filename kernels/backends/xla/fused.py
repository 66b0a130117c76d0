"""The fused op of implementation "xla": tiles of queries against slabs of keys, in plain JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from natjax.kernels.backends.xla import tiles as tiling
from natjax.kernels.backends.xla.tiles import AxisTiles
from natjax.kernels.checks import accumulation_dtype, product_precision
from natjax.kernels.cross_scale import with_more_heads
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.weighting import Dropout, dropout_factors, soft_capped

# Cost of moving a key into a slab, in logits: `python benchmarks/ops.py --sweep` on a CPU.
_SLAB_OVERHEAD = 64
# Logits computed at once: on a CPU what its caches hold, elsewhere what keeps the device busy.
_LOGITS_AT_ONCE = {"cpu": 2**21}
_LOGITS_AT_ONCE_ELSEWHERE = 2**26
# Finite, so that no difference of masked logits is nan.
_MASKED = -1e30


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
    return on_device_parts(attend, (query, key, value, extra, mask, dropout), (rpb, part))


def _attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    extra: tuple[Float[Array, "B E M D"], Float[Array, "B E M Dv"]] | None,
    key_mask: Bool[Array, "B *Y 1 1"] | None,
    dropout: Dropout | None,
    shared: tuple[Float[Array, "N *R"] | None, Int[Array, "axes"] | None],
    *,
    neighborhood: Neighborhood,
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    rpb, part = shared
    tiles = tiling.choose_tiles(neighborhood, _SLAB_OVERHEAD)
    dtype, heads = accumulation_dtype(query.dtype), key.shape[-2]
    table = None if rpb is None else _bias_table(rpb.astype(dtype), tiles, heads)
    rows_at_once, tiles_at_once = _at_once(query.shape[0] * query.shape[-2], tiles)
    attend = functools.partial(
        _attend,
        scale=scale,
        soft_cap=soft_cap,
        extra=extra,
        dropout=dropout,
        num_tokens=neighborhood.num_tokens,
    )

    def row(q: Array, slabs: tuple[Array, Array, Array | None], index: Array) -> Any:
        mask = _row_mask(tiles, index, part)
        bias = jnp.zeros((), dtype) if table is None else _row_bias(table, tiles, index)
        penalty = jnp.where(mask, bias, jnp.asarray(_MASKED, dtype))
        penalty = penalty.reshape(q.shape[0], *penalty.shape[len(tiles) - 1 :][:2], q.shape[-2], -1)
        slabs = jax.tree.map(lambda x: _cut_tiles(x, tiles[1:]), slabs)
        numbers = None if dropout is None else _row_numbers(tiles, index, part)
        return _map(attend, (q, *slabs, penalty, numbers), tiles_at_once)

    slabs = jax.tree.map(lambda x: _cut_rows(x, tiles[0]), (key, value, key_mask))
    rows = (_tile_queries(query, tiles, heads), slabs, jnp.arange(tiles[0].count))
    out, lse = _map(row, rows, rows_at_once)
    shape = (*query.shape[:1], *neighborhood.query_shape, *query.shape[-2:])
    return _untile(out, tiles, shape), _untile(lse[..., None], tiles, shape)[..., 0]


# Layout. Tiles first, so that a loop may take them one by one: A tiles of the first axis,
# each a row of R tiles of the others; q queries in a tile, k keys in a slab; G query heads for
# each key head.


def _tile_queries(
    x: Float[Array, "B *X N D"], tiles: tuple[AxisTiles, ...], heads: int
) -> Float[Array, "A R B M G q D"]:
    n = len(tiles)
    for axis in reversed(range(n)):
        x = tiling.split_queries(x, 1 + axis, tiles[axis])
    x = x.reshape(*x.shape[:-2], heads, x.shape[-2] // heads, x.shape[-1])
    counts, sizes = range(1, 2 * n, 2), range(2, 2 * n + 1, 2)
    x = x.transpose(*counts, 0, 2 * n + 1, 2 * n + 2, *sizes, 2 * n + 3)
    return x.reshape(tiles[0].count, _row(tiles), *x.shape[n : n + 3], _queries(tiles), x.shape[-1])


def _untile(
    x: Float[Array, "A R B M G q C"], tiles: tuple[AxisTiles, ...], shape: tuple[int, ...]
) -> Float[Array, "B *X N C"]:
    n = len(tiles)
    batch_and_heads, sizes = x.shape[2:5], (axis.size for axis in tiles)
    x = x.reshape(*(axis.count for axis in tiles), *batch_and_heads, *sizes, x.shape[-1])
    tokens = (axis for j in range(n) for axis in (j, n + 3 + j))
    x = x.transpose(n, *tokens, n + 1, n + 2, 2 * n + 3)
    for axis in range(n):
        x = tiling.merge_queries(x, 1 + axis, tiles[axis])
    return x.reshape(*shape[:-1], x.shape[-1])


def _cut_rows(x: Shaped[Array, "B *X M D"], tiles: AxisTiles) -> Shaped[Array, "A B M h *Y D"]:
    x = tiling.split_keys(jnp.moveaxis(x, -2, 1), 2, tiles)
    return jnp.moveaxis(x, 2, 0)


def _cut_tiles(
    x: Shaped[Array, "B M h *Y D"], tiles: tuple[AxisTiles, ...]
) -> Shaped[Array, "R B M k D"]:
    n = len(tiles)
    for axis in reversed(range(n)):
        x = tiling.split_keys(x, 3 + axis, tiles[axis])
    counts, halos = range(3, 2 * n + 3, 2), range(4, 2 * n + 4, 2)
    x = x.transpose(*counts, 0, 1, 2, *halos, 2 * n + 3)
    rows, keys = math.prod(x.shape[:n]), math.prod(x.shape[n + 2 : -1])
    return x.reshape(rows, *x.shape[n : n + 2], keys, x.shape[-1])


def _row(tiles: tuple[AxisTiles, ...]) -> int:
    return math.prod(axis.count for axis in tiles[1:])


def _queries(tiles: tuple[AxisTiles, ...]) -> int:
    return math.prod(axis.size for axis in tiles)


# What each query of a row of tiles sees, and its bias. Both broadcast against
# [*A, M, G, *t, *h], where *A are the tiles of all axes but the first.


def _row_mask(
    tiles: tuple[AxisTiles, ...], index: Int[Array, ""], part: Int[Array, "axes"] | None
) -> Bool[Array, "*A 1 1 *t *h"]:
    n = len(tiles)
    masks = []
    for j, axis in enumerate(tiles):
        start, end = (_in_force(x, part, j) for x in (axis.start, axis.end))
        if j == 0:
            start, end = start[index][None], end[index][None]
        slot = jnp.arange(axis.halo, dtype=start.dtype)
        mask = (start[..., None] <= slot[None, None]) & (slot[None, None] < end[..., None])
        shape = [1] * (3 * n + 1)
        shape[n + 1 + j], shape[2 * n + 1 + j] = axis.size, axis.halo
        if j:
            shape[j - 1] = axis.count
        masks.append(mask.reshape(shape))
    return functools.reduce(jnp.logical_and, masks)


def _row_numbers(
    tiles: tuple[AxisTiles, ...], index: Int[Array, ""], part: Int[Array, "axes"] | None
) -> tuple[Int[Array, "R q"], Int[Array, "R k"]]:
    """The number of each query and of each key of a row of tiles, among all tokens of the map."""
    n = len(tiles)
    numbers = []
    for tokens in ([t.query_tokens for t in tiles], [t.key_tokens for t in tiles]):
        total = jnp.zeros((), jnp.int32)
        for j, axis in enumerate(tiles):
            x = _in_force(tokens[j], part, j)
            x = x[index][None] if j == 0 else x
            shape = [1] * (2 * n - 1)
            shape[n - 1 + j] = x.shape[1]
            if j:
                shape[j - 1] = axis.count
            total = total * axis.window.length + x.reshape(shape)
        numbers.append(total.reshape(_row(tiles), -1))
    return numbers[0], numbers[1]


def _in_force(x: Int[np.ndarray, "P A t"], part: Array | None, axis: int) -> Int[Array, "A t"]:
    """What holds for the origin that is in force along an axis."""
    return jnp.asarray(x[0]) if part is None else jnp.asarray(x)[part[axis]]


def _bias_table(
    rpb: Float[Array, "N *R"], tiles: tuple[AxisTiles, ...], heads: int
) -> Float[Array, "*S M G *t *h"]:
    """The bias of every query of a tile and slot of its slab, for each kind of tile.

    The kind is the distance from tile to slab (`AxisTiles.shifts`): three an axis where slabs are
    clipped at both borders, so the table is small.
    """
    n = len(tiles)
    table = rpb.reshape(heads, -1, *rpb.shape[1:])
    for axis in tiles:
        # Takes the foremost bias axis away and appends (S, t, h).
        size = 2 * axis.window.kernel_size - 1
        one_hot = jax.nn.one_hot(axis.bias_index(), size, dtype=rpb.dtype)
        table = jnp.tensordot(table, one_hot, axes=(2, 3), precision="highest")
    kinds, queries, slots = (range(2 + i, 2 + 3 * n, 3) for i in range(3))
    return table.transpose(*kinds, 0, 1, *queries, *slots)


def _row_bias(
    table: Float[Array, "*S M G *t *h"], tiles: tuple[AxisTiles, ...], index: Int[Array, ""]
) -> Float[Array, "*A M G *t *h"]:
    """The bias of each tile in a row of tiles."""
    for j, axis in enumerate(tiles):
        shifts, kind = axis.shifts
        one_hot = jax.nn.one_hot(kind, len(shifts), dtype=table.dtype)
        if j == 0:
            table = _pick(table, one_hot[index][None])[0]
        else:
            table = jnp.moveaxis(_pick(jnp.moveaxis(table, j - 1, 0), one_hot), 0, j - 1)
    return table


def _pick(table: Float[Array, "S *Y"], one_hot: Float[Array, "A S"]) -> Float[Array, "A *Y"]:
    """``table[kind]``; a gather would scatter in reverse.

    A sum, since a matrix product here sends the compiler of jaxlib 0.11.2 into an endless loop
    when it meets the other products of the backward pass of grouped heads.
    """
    one_hot = one_hot.reshape(*one_hot.shape, *[1] * (table.ndim - 1))
    return jnp.sum(one_hot * table[None], axis=1)


# One tile, and the loops over tiles.


def _attend(
    q: Float[Array, "B M G q D"],
    k: Float[Array, "B M k D"],
    v: Float[Array, "B M k Dv"],
    key_mask: Bool[Array, "B 1 k 1"] | None,
    penalty: Float[Array, "#M #G q k"],
    numbers: tuple[Int[Array, "q"], Int[Array, "k"]] | None,
    *,
    scale: float,
    soft_cap: float | None,
    extra: tuple[Float[Array, "B E M D"], Float[Array, "B E M Dv"]] | None,
    dropout: Dropout | None,
    num_tokens: int,
) -> tuple[Float[Array, "B M G q Dv"], Float[Array, "B M G q"]]:
    """Attention of one tile to its slab and to the additional keys: output and lse."""
    dtype = penalty.dtype
    raised = q.astype(dtype)
    einsum = functools.partial(jnp.einsum, precision=product_precision(q.dtype))
    products = scale * einsum("bmgqd,bmkd->bmgqk", raised, k.astype(dtype))
    products = soft_capped(products, soft_cap)
    # Selected, since nan plus a penalty would be nan, and reach queries that do not see the key.
    is_seen = (penalty > _MASKED / 2)[None]
    if key_mask is not None:
        is_seen = is_seen & key_mask[:, :, None, None, :, 0]
    logits = [jnp.where(is_seen, products + penalty[None], jnp.asarray(_MASKED, dtype))]
    values = [jnp.moveaxis(v, 1, 2).astype(dtype)]
    if extra is not None:
        products = scale * einsum("bmgqd,bemd->bmgqe", raised, extra[0].astype(dtype))
        logits.append(soft_capped(products, soft_cap))
        values.append(extra[1].astype(dtype))
    weights, lse = _softmax(logits)
    if dropout is not None and numbers is not None:
        seeds = dropout.seeds.reshape(*q.shape[:3], 2)
        # Additional keys come after all tokens of the map.
        places = [numbers[1], num_tokens + jnp.arange(logits[-1].shape[-1])][: len(logits)]
        weights = [
            w * dropout_factors(dropout, seeds, numbers[0], keys, dtype)
            for w, keys in zip(weights, places, strict=True)
        ]
    parts = (einsum("bmgqk,bkmd->bmgqd", w, y) for w, y in zip(weights, values, strict=True))
    return sum(parts).astype(q.dtype), lse


def _softmax(
    logits: list[Float[Array, "B M G q _"]],
) -> tuple[list[Float[Array, "B M G q _"]], Float[Array, "B M G q"]]:
    """Weights and log-sum-exp over several sets of keys; zeros and -inf where all are hidden."""
    # Every shift gives the same result, so this one needs no gradient.
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    top = jax.lax.stop_gradient(top)
    sees_none = top <= _MASKED / 2
    top = jnp.where(sees_none, jnp.zeros_like(top), top)
    weights = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    total = jnp.where(sees_none, jnp.ones_like(total), total)
    lse = jnp.where(sees_none, -jnp.inf, top + jnp.log(total))
    return [x / total for x in weights], lse[..., 0]


def _at_once(problems: int, tiles: tuple[AxisTiles, ...]) -> tuple[int, int]:
    """How many rows of tiles, and how many tiles of a row, to compute at once.

    Args:
      problems: batch size times heads, which are always computed together.
      tiles: the tiles of each axis.
    """
    budget = _LOGITS_AT_ONCE.get(jax.default_backend(), _LOGITS_AT_ONCE_ELSEWHERE)
    per_tile = problems * math.prod(axis.size * axis.halo for axis in tiles)
    tiles_at_once = _divisor(_row(tiles), budget // max(per_tile, 1))
    rows_at_once = _divisor(tiles[0].count, budget // max(per_tile * _row(tiles), 1))
    return rows_at_once, tiles_at_once


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, at least 1."""
    return next(n for n in range(max(1, min(number, limit)), 0, -1) if number % n == 0)


def _map(function: Callable[..., Any], xs: tuple[Any, ...], at_once: int) -> Any:
    """Map over the leading axis, ``at_once`` items at a time, rematerialising in reverse mode."""
    if at_once >= jax.tree.leaves(xs)[0].shape[0]:
        return jax.vmap(jax.checkpoint(function))(*xs)
    # A loop body is its own scope for common subexpressions.
    function = jax.checkpoint(function, prevent_cse=False)
    return jax.lax.map(lambda x: function(*x), xs, batch_size=at_once)
