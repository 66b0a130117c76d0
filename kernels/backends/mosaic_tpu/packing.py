"""Arrays as the kernels take and return them, and what is made of those: in plain JAX.

Maps are ``[B, *X, N * D]``, with heads and their channels along the lanes. What there is one of for
each query and head, as the log-sum-exp, is packed: a row of lanes for each tile.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels.backends.mosaic_tpu.layout import Layout


def as_map(x: Float[Array, "B T N D"], layout: Layout) -> Float[Array, "B *X C"]:
    """Tokens along their axes; heads filled up with zeros to the layout's channels."""
    missing = layout.head_dim - x.shape[-1]
    if missing:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    return x.reshape(x.shape[0], *layout.tokens, x.shape[2] * x.shape[3])


def from_map(x: Float[Array, "B *X C"], layout: Layout, head_dim: int) -> Float[Array, "B T N D"]:
    """The transpose of `as_map`."""
    tokens = math.prod(layout.tokens)
    x = x.reshape(x.shape[0], tokens, x.shape[-1] // layout.head_dim, layout.head_dim)
    return x[..., :head_dim]


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


def pack_rows(x: Float[Array, "B T N"], layout: Layout) -> Float[Array, "G B tiles lanes"]:
    """A row of lanes for each tile, in the order of `Layout.plan`.

    Zeros where there is no query or head.
    """
    batch, _, heads = x.shape
    groups = num_blocks(heads, layout)
    x = x.reshape(batch, *layout.tokens, heads)
    axes = layout.blocks.axes
    full = [axis.num_tiles * axis.tile for axis in axes]
    missing = [size - n for size, n in zip(full, layout.tokens, strict=True)]
    x = jnp.pad(x, ((0, 0), *((0, n) for n in missing), (0, groups * layout.heads - heads)))
    x = x.reshape(batch, *_by_tile(layout), groups, layout.heads)
    n = len(axes)
    outer = [1 + 3 * i + part for part in (2, 0) for i in range(n)]
    inner = [2 + 3 * i for i in range(n)]
    x = x.transpose(1 + 3 * n, 0, *outer, 2 + 3 * n, *inner)
    return x.reshape(groups, batch, layout.blocks.num_tiles, layout.logit_lanes)


def unpack_rows(
    x: Float[Array, "G B tiles lanes"], layout: Layout, heads: int
) -> Float[Array, "B T N"]:
    """The transpose of `pack_rows`."""
    groups, batch = x.shape[:2]
    axes = layout.blocks.axes
    n = len(axes)
    outer = [*layout.dilation, *(axis.per_group for axis in axes)]
    x = x.reshape(groups, batch, *outer, layout.heads, *(axis.tile for axis in axes))
    within = [2 + part for i in range(n) for part in (n + i, 2 * n + 1 + i, i)]
    x = x.transpose(1, *within, 0, 2 + 2 * n)
    x = x.reshape(batch, *(axis.num_tiles * axis.tile for axis in axes), groups * layout.heads)
    x = x[:, *(slice(size) for size in layout.tokens), :heads]
    return x.reshape(batch, -1, heads)


def _by_tile(layout: Layout) -> list[int]:
    """Along each axis: tiles of a dilation group, rows of a tile, dilation groups.

    A token's number is its position times the dilation, plus its group.
    """
    return [
        size
        for axis in layout.blocks.axes
        for size in (axis.per_group, axis.tile, axis.window.dilation)
    ]
