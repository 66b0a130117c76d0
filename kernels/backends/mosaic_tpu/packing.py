"""Arrays as the kernels take and return them, and what is made of those: in plain JAX.

Maps are ``[B, *X, N * D]``, with heads and their channels along the lanes; or ``[S, *X, N * D]``
where each image is cut into strips. What there is one of for
each query and head, as the log-sum-exp, is packed: a row of lanes for each tile.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.plan.blocks import Rows


def as_map(x: Float[Array, "B T N D"], layout: Layout, of: Rows) -> Float[Array, "S *X C"]:
    """Tokens along their axes; heads filled up with zeros to the layout's channels.

    Images that are cut into strips are so many images in a row. Where keys begin with another
    dilation group than queries, zeros come before them.
    """
    missing = layout.head_dim - x.shape[-1]
    if missing:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    padding = layout.padding if of == "keys" else (0,) * len(layout.padding)
    tokens = [n - before for n, before in zip(layout.tokens(of), padding, strict=True)]
    x = x.reshape(x.shape[0], *tokens, x.shape[2] * x.shape[3])
    if any(padding):
        x = jnp.pad(x, ((0, 0), *((before, 0) for before in padding), (0, 0)))
    return cut(x, layout, of)


def from_map(
    x: Float[Array, "S *X C"], layout: Layout, head_dim: int, of: Rows
) -> Float[Array, "B T N D"]:
    """The transpose of `as_map`."""
    x = uncut(x, layout, of)
    if of == "keys" and any(layout.padding):
        x = x[:, *(slice(before, None) for before in layout.padding)]
    tokens = math.prod(x.shape[1:-1])
    x = x.reshape(x.shape[0], tokens, x.shape[-1] // layout.head_dim, layout.head_dim)
    return x[..., :head_dim]


def as_slots(x: Float[Array, "B T N K"], layout: Layout) -> Float[Array, "S N *X K"]:
    """Window slots of tokens along their axes, those of one head together.

    XLA need not move anything for it: in memory slots come last before and after, and the order of
    the other dimensions is left to it.
    """
    x = x.reshape(x.shape[0], *layout.tokens("queries"), *x.shape[2:])
    x = cut(x, layout, "queries")
    return jnp.moveaxis(x, -2, 1)


def from_slots(x: Float[Array, "S N *X K"], layout: Layout) -> Float[Array, "B T N K"]:
    """The transpose of `as_slots`."""
    x = uncut(jnp.moveaxis(x, 1, -2), layout, "queries")
    return x.reshape(x.shape[0], math.prod(layout.tokens("queries")), *x.shape[-2:])


def cut(x: Float[Array, "B *X C"], layout: Layout, of: Rows) -> Float[Array, "S *Y C"]:
    """Images as strips: those of queries end where the next begins, those of keys overlap.

    Strips of keys are made of as many strips of queries as they reach over, so that it takes a few
    operations however many strips there are.
    """
    if layout.num_strips == 1:
        return x
    size, parts, front = _strip_rows(layout, of)
    rows = (layout.num_strips + parts - 1) * size
    x = _resized(x, 1, front, rows)
    x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    x = jnp.concatenate([x[:, i : i + layout.num_strips] for i in range(parts)], axis=2)
    return x[:, :, : layout.tokens_of_strip(of)[0]].reshape(
        -1, layout.tokens_of_strip(of)[0], *x.shape[3:]
    )


def uncut(x: Float[Array, "S *Y C"], layout: Layout, of: Rows) -> Float[Array, "B *X C"]:
    """The transpose of `cut`: what several strips have of a key is added up."""
    strips = layout.num_strips
    if strips == 1:
        return x
    size, parts, front = _strip_rows(layout, of)
    x = _resized(x.reshape(-1, strips, *x.shape[1:]), 2, 0, parts * size)
    pieces = (
        _resized(x[:, :, i * size : (i + 1) * size], 1, i, strips + parts - 1) for i in range(parts)
    )
    total = functools.reduce(jnp.add, pieces)
    total = total.reshape(total.shape[0], -1, *total.shape[3:])
    return _resized(total, 1, -front, layout.tokens(of)[0])


def _strip_rows(layout: Layout, of: Rows) -> tuple[int, int, int]:
    """Tokens along the first axis of a strip of queries; how many of those a strip reaches over;
    and how many tokens it begins before its first query.
    """
    size = layout.tokens_of_strip("queries")[0]
    front = 0 if of == "queries" else -layout.strip_offset * layout.dilation[0]
    return size, -(-layout.tokens_of_strip(of)[0] // size), front


def _resized(x: Array, axis: int, before: int, size: int) -> Array:
    """An axis with so many zeros in front (or entries fewer, if negative), of a given length."""
    x = jax.lax.slice_in_dim(x, max(0, -before), min(x.shape[axis], size - before), axis=axis)
    before = max(0, before)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, size - before - x.shape[axis])
    return jnp.pad(x, widths)


def num_blocks(heads: int, layout: Layout) -> int:
    """Blocks of lanes; the last may have fewer heads than the others."""
    return -(-heads // layout.heads)


def pack_table(
    table: Float[Array, "N kinds 1 queries keys"], layout: Layout
) -> Float[Array, "G kinds keys lanes"]:
    """What is added to the logits, with heads and queries in the lanes; one for all, if it is."""
    if table.shape[0] == 1:
        table = jnp.broadcast_to(table, (layout.heads, *table.shape[1:]))
    groups = num_blocks(table.shape[0], layout)
    table = jnp.pad(table[:, :, 0], ((0, groups * layout.heads - table.shape[0]), *((0, 0),) * 3))
    kinds, queries, keys = table.shape[1:]
    table = table.reshape(groups, layout.heads, kinds, queries, keys)
    return table.transpose(0, 2, 4, 1, 3).reshape(groups, kinds, keys, layout.logit_lanes)


def unpack_table(
    x: Float[Array, "G kinds keys lanes"], layout: Layout, heads: int
) -> Float[Array, "N kinds 1 queries keys"]:
    """The transpose of `pack_table`, for a table of all heads."""
    groups, kinds, keys, _ = x.shape
    x = x.reshape(groups, kinds, keys, layout.heads, layout.queries)
    return x.transpose(0, 3, 1, 4, 2).reshape(-1, kinds, 1, layout.queries, keys)[:heads]


def pack_rows(x: Float[Array, "B T N"], layout: Layout) -> Float[Array, "G S tiles lanes"]:
    """A row of lanes for each tile, in the order of `Layout.plan`.

    Zeros where there is no query or head.
    """
    heads, n = x.shape[-1], len(layout.axes)
    x = cut(x.reshape(x.shape[0], *layout.tokens("queries"), heads), layout, "queries")
    groups = num_blocks(heads, layout)
    missing = [size - have for size, have in zip(_full(layout), x.shape[1:-1], strict=True)]
    x = jnp.pad(x, ((0, 0), *((0, k) for k in missing), (0, groups * layout.heads - heads)))
    # A token's number is its position times the dilation, plus its group.
    axes = zip(layout.tiles_along, layout.blocks.axes, layout.dilation, strict=True)
    by_tile = [size for tiles, axis, d in axes for size in (tiles, axis.tile, d)]
    x = x.reshape(x.shape[0], *by_tile, groups, layout.heads)
    outer = [1 + 3 * i + part for part in (2, 0) for i in range(n)]
    inner = [2 + 3 * i for i in range(n)]
    x = x.transpose(1 + 3 * n, 0, *outer, 2 + 3 * n, *inner)
    return x.reshape(groups, -1, layout.num_tiles, layout.logit_lanes)


def unpack_rows(
    x: Float[Array, "G S tiles lanes"], layout: Layout, heads: int
) -> Float[Array, "B T N"]:
    """The transpose of `pack_rows`."""
    groups, images = x.shape[:2]
    axes, n = layout.axes, len(layout.axes)
    outer = [*layout.dilation, *layout.tiles_along]
    x = x.reshape(groups, images, *outer, layout.heads, *(axis.tile for axis in axes))
    within = [2 + part for i in range(n) for part in (n + i, 2 * n + 1 + i, i)]
    x = x.transpose(1, *within, 0, 2 + 2 * n)
    x = x.reshape(images, *_full(layout), groups * layout.heads)
    x = x[:, *(slice(size) for size in layout.tokens_of_strip("queries")), :heads]
    x = uncut(x, layout, "queries")
    return x.reshape(x.shape[0], -1, heads)


def _full(layout: Layout) -> tuple[int, ...]:
    """Tokens along each axis of a strip if all of its tiles were full."""
    return tuple(n * d for n, d in zip(layout.tiled, layout.dilation, strict=True))
