"""Implementation "xla": tiles of queries against slabs of keys, in plain JAX, for any device.

Queries are cut into tiles, and each tile attends densely, under a mask, to the slab of keys that
holds all its windows (`natjax.kernels.tiles`). A loop runs over the rows of tiles along the first
axis; its body is rematerialised in reverse mode. What is stored is the slabs along that axis (keys
and values about twice over, never ``K`` times) and the logits of a few tiles.

Slabs are cut by static slices, and the bias is laid out by small products with one-hot matrices.
So the transpose that JAX derives has no scatter and is as good as a hand-written backward pass,
and forward mode and higher derivatives come with it. Tokens are never mixed with batch or heads:
arrays sharded over these stay where they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels import spmd
from natjax.kernels import tiles as tiling
from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.tiles import AxisTiles
from natjax.kernels.window import AxisWindow, Neighborhood, window_start

# Cost of moving a key into a slab, in logits: `python benchmarks/ops.py --sweep` on a CPU.
_SLAB_OVERHEAD = 64
# Logits computed at once: on a CPU what its caches hold, elsewhere what keeps the device busy.
_LOGITS_AT_ONCE = {"cpu": 2**21}
_LOGITS_AT_ONCE_ELSEWHERE = 2**26
# Finite, so that no difference of masked logits is nan.
_MASKED = -1e30


@functools.partial(jax.jit, static_argnames=("hood", "scale"))
def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    hood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.reference.attention`."""
    attend = functools.partial(_attention, hood=hood, scale=scale)
    batched = (query, key, value, additional_keys, additional_values)
    return spmd.each_share(attend, batched, rpb)


def _attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
    rpb: Float[Array, "N *R"] | None,
    *,
    hood: Neighborhood,
    scale: float,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    tiles = tiling.choose_tiles(hood, _SLAB_OVERHEAD)
    dtype, heads = accumulation_dtype(query.dtype), key.shape[-2]
    table = None if rpb is None else _bias_table(rpb.astype(dtype), tiles, heads)
    rows_at_once, tiles_at_once = _at_once(query.shape[0] * query.shape[-2], tiles)
    attend = functools.partial(
        _attend, scale=scale, extra_keys=additional_keys, extra_values=additional_values
    )

    def row(q: Array, k: Array, v: Array, index: Array) -> tuple[Array, Array]:
        mask = _row_mask(tiles, index)
        bias = jnp.zeros((), dtype) if table is None else _row_bias(table, tiles, index)
        penalty = jnp.where(mask, bias, jnp.asarray(_MASKED, dtype))
        penalty = penalty.reshape(q.shape[0], *penalty.shape[len(tiles) - 1 :][:2], q.shape[-2], -1)
        slabs = _cut_tiles(k, tiles[1:]), _cut_tiles(v, tiles[1:])
        return _map(attend, (q, *slabs, penalty), tiles_at_once)

    rows = (
        _tile_queries(query, tiles, heads),
        _cut_rows(key, tiles[0]),
        _cut_rows(value, tiles[0]),
    )
    out, lse = _map(row, (*rows, jnp.arange(tiles[0].count)), rows_at_once)
    return _untile(out, tiles, query.shape), _untile(lse[..., None], tiles, query.shape)[..., 0]


@functools.partial(jax.jit, static_argnames=("hood", "scale"))
def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    hood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.reference.qk`; one pass over the keys for each window slot."""
    return spmd.each_share(functools.partial(_qk, hood=hood, scale=scale), (query, key), rpb)


def _qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    rpb: Float[Array, "N *R"] | None,
    *,
    hood: Neighborhood,
    scale: float,
) -> Float[Array, "B *X N K"]:
    dtype = accumulation_dtype(query.dtype)
    heads = key.shape[-2]
    grouped = (*query.shape[:-2], heads, query.shape[-2] // heads, query.shape[-1])
    q = query.reshape(grouped).astype(dtype)
    bias = None if rpb is None else rpb.astype(dtype)

    def logits(slot: Array) -> Float[Array, "B *X N"]:
        k = _slot_keys(key, hood, slot)[..., None, :]
        z = scale * jnp.sum(q * k.astype(dtype), axis=-1)
        z = z.reshape(query.shape[:-1])
        if bias is not None:
            z += _slot_bias(bias, hood, slot)[None]
        return jnp.where(_slot_mask(hood, slot)[None, ..., None], z, -jnp.inf).astype(query.dtype)

    by_slot = jax.lax.map(jax.checkpoint(logits, prevent_cse=False), _slots(hood))
    return jnp.moveaxis(by_slot, 0, -1)


@functools.partial(jax.jit, static_argnames=("hood",))
def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    hood: Neighborhood,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.reference.av`; one pass over the values for each window slot."""
    dtype = accumulation_dtype(weights.dtype)
    heads = value.shape[-2]
    grouped = (*weights.shape[:-2], heads, weights.shape[-2] // heads)

    def add(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        w, slot = xs
        w = jnp.where(_slot_mask(hood, slot)[None, ..., None], w, 0).astype(dtype).reshape(grouped)
        v = _slot_keys(value, hood, slot).astype(dtype)
        return total + w[..., None] * v[..., None, :], None

    start = jnp.zeros((*grouped, value.shape[-1]), dtype)
    by_slot = jnp.moveaxis(weights, -1, 0)
    total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, (by_slot, _slots(hood)))
    return total.reshape(*weights.shape[:-1], value.shape[-1]).astype(weights.dtype)


# Fused: layout. Tiles first, so that a loop may take them one by one: A tiles of the first axis,
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


def _cut_rows(x: Float[Array, "B *X M D"], tiles: AxisTiles) -> Float[Array, "A B M h *Y D"]:
    x = tiling.split_keys(jnp.moveaxis(x, -2, 1), 2, tiles)
    return jnp.moveaxis(x, 2, 0)


def _cut_tiles(
    x: Float[Array, "B M h *Y D"], tiles: tuple[AxisTiles, ...]
) -> Float[Array, "R B M k D"]:
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


# Fused: what each query of a row of tiles sees, and its bias. Both broadcast against
# [*A, M, G, *t, *h], where *A are the tiles of all axes but the first.


def _row_mask(tiles: tuple[AxisTiles, ...], index: Int[Array, ""]) -> Bool[Array, "*A 1 1 *t *h"]:
    n = len(tiles)
    masks = []
    for j, axis in enumerate(tiles):
        start, end = jnp.asarray(axis.start), jnp.asarray(axis.end)
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


# Fused: one tile, and the loops over tiles.


def _attend(
    q: Float[Array, "B M G q D"],
    k: Float[Array, "B M k D"],
    v: Float[Array, "B M k Dv"],
    penalty: Float[Array, "#M #G q k"],
    *,
    scale: float,
    extra_keys: Float[Array, "B E M D"] | None,
    extra_values: Float[Array, "B E M Dv"] | None,
) -> tuple[Float[Array, "B M G q Dv"], Float[Array, "B M G q"]]:
    """Attention of one tile to its slab and to the additional keys: output and lse."""
    dtype = penalty.dtype
    raised = q.astype(dtype)
    logits = [scale * jnp.einsum("bmgqd,bmkd->bmgqk", raised, k.astype(dtype)) + penalty[None]]
    values = [jnp.moveaxis(v, 1, 2).astype(dtype)]
    if extra_keys is not None and extra_values is not None:
        extra = jnp.einsum("bmgqd,bemd->bmgqe", raised, extra_keys.astype(dtype))
        logits.append(scale * extra)
        values.append(extra_values.astype(dtype))
    # Every shift gives the same result, so this one needs no gradient.
    top = functools.reduce(jnp.maximum, (x.max(-1, keepdims=True) for x in logits))
    top = jax.lax.stop_gradient(top)
    shares = [jnp.exp(x - top) for x in logits]
    total = sum(x.sum(-1, keepdims=True) for x in shares)
    parts = (
        jnp.einsum("bmgqk,bkmd->bmgqd", x / total, y) for x, y in zip(shares, values, strict=True)
    )
    return sum(parts).astype(q.dtype), (top + jnp.log(total))[..., 0]


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


def _map(function: Callable[..., Any], xs: tuple[Array, ...], at_once: int) -> Any:
    """Map over the leading axis, ``at_once`` items at a time, rematerialising in reverse mode."""
    if at_once >= xs[0].shape[0]:
        return jax.vmap(jax.checkpoint(function))(*xs)
    # A loop body is its own scope for common subexpressions.
    function = jax.checkpoint(function, prevent_cse=False)
    return jax.lax.map(lambda x: function(*x), xs, batch_size=at_once)


# Unfused: one window slot at a time, for all queries.


def _slots(hood: Neighborhood) -> Int[np.ndarray, "K axes"]:
    slots = np.unravel_index(np.arange(hood.num_neighbors), hood.kernel_size)
    return np.stack(slots, axis=-1).astype(np.int32)


def _slot_keys(
    x: Float[Array, "B *X M D"], hood: Neighborhood, slot: Int[Array, "axes"]
) -> Float[Array, "B *X M D"]:
    """The key (or value) in one window slot of every query."""
    for j, axis in enumerate(hood.axes):
        length = axis.max_group_length
        x = tiling.split_groups(x, 1 + j, axis, length)
        longer = axis.length % axis.dilation or axis.dilation
        groups = [jax.lax.slice_in_dim(x, 0, longer, axis=1 + j)]
        if longer < axis.dilation:
            shorter = jax.lax.slice_in_dim(x, longer, axis.dilation, axis=1 + j)
            groups.append(jax.lax.slice_in_dim(shorter, 0, length - 1, axis=2 + j))
        groups = [_slide(group, 2 + j, axis, slot[j], length) for group in groups]
        x = tiling.merge_groups(jnp.concatenate(groups, axis=1 + j), 1 + j, axis)
    return x


def _slide(x: Array, axis: int, window: AxisWindow, slot: Int[Array, ""], length: int) -> Array:
    """`_slot_keys` along the positions of dilation groups of one length, padded to ``length``.

    The window slides by one key a query but stands still at the borders: a slice, whose ends are
    repeated.
    """
    positions = x.shape[axis]
    start = window_start(
        np.arange(positions),
        positions,
        kernel_size=window.kernel_size,
        is_causal=window.is_causal,
    )
    left, slides = int((start == 0).sum()) - 1, int(start.max())
    x = jax.lax.dynamic_slice_in_dim(x, slot, slides + 1, axis=axis)
    ends = (
        jax.lax.slice_in_dim(x, 0, 1, axis=axis),
        jax.lax.slice_in_dim(x, slides, None, axis=axis),
    )
    first, last = (
        jnp.broadcast_to(end, (*x.shape[:axis], count, *x.shape[axis + 1 :]))
        for end, count in zip(ends, (left, positions - 1 - left - slides), strict=True)
    )
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, length - positions)
    return jnp.pad(jnp.concatenate([first, x, last], axis=axis), padding)


def _slot_mask(hood: Neighborhood, slot: Int[Array, "axes"]) -> Bool[Array, "*X"]:
    """Which queries have a key in the slot."""
    masks = [
        axis.slot_is_visible(jnp.arange(axis.length, dtype=slot.dtype), slot[j])
        for j, axis in enumerate(hood.axes)
    ]
    return functools.reduce(jnp.logical_and, jnp.meshgrid(*masks, indexing="ij", sparse=True))


def _slot_bias(
    rpb: Float[Array, "N *R"], hood: Neighborhood, slot: Int[Array, "axes"]
) -> Float[Array, "*X N"]:
    """The bias of the key in the slot, by one-hot products: a gather would scatter in reverse."""
    for j, axis in enumerate(hood.axes):
        query = jnp.arange(axis.length, dtype=slot.dtype)
        index = axis.bias_index(query, axis.neighbor(query, slot[j]))
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=rpb.dtype)
        rpb = jnp.tensordot(rpb, one_hot, axes=(1, 1), precision="highest")
    return jnp.moveaxis(rpb, 0, -1)
