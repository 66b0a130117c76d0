"""Arrays as the kernels take and return them, and what is made of those: in plain JAX.

Maps are ``[B, G, *P, C]``: dilation groups, positions along each axis, and heads with their
channels along the lanes. Without dilation, and where nothing is missing, that is the array of
tokens as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels.backends.mosaic_tpu.large.axis import AxisWalk
from natjax.kernels.backends.mosaic_tpu.large.walk import Walk


def as_map(x: Float[Array, "B T N D"], walk: Walk) -> Float[Array, "B G *P C"]:
    """Positions along their axes; heads and their channels filled up with zeros.

    Dilation groups are as long as the longest, with zeros at the end.
    """
    batch, tokens, heads, channels = x.shape
    del tokens
    missing = (-heads % walk.heads, walk.head_dim - channels)
    if any(missing):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
    x = x.reshape(batch, *walk.tokens, x.shape[2] * x.shape[3])
    if walk.num_groups == 1:
        return x[:, None]
    n = len(walk.tokens)
    full = [size * d for size, d in zip(walk.positions, walk.dilation, strict=True)]
    x = _resized(x, range(1, n + 1), full)
    # A token's number is its position times the dilation, plus its group.
    x = x.reshape(batch, *_interleaved(walk.positions, walk.dilation), x.shape[-1])
    x = x.transpose(0, *(2 + 2 * i for i in range(n)), *(1 + 2 * i for i in range(n)), 1 + 2 * n)
    return x.reshape(batch, walk.num_groups, *walk.positions, x.shape[-1])


def from_map(
    x: Float[Array, "B G *P C"], walk: Walk, heads: int, channels: int
) -> Float[Array, "B T N D"]:
    """The transpose of `as_map`."""
    batch, n = x.shape[0], len(walk.tokens)
    if walk.num_groups > 1:
        x = x.reshape(batch, *walk.dilation, *walk.positions, x.shape[-1])
        within = [1 + part + i for i in range(n) for part in (n, 0)]
        x = x.transpose(0, *within, 1 + 2 * n)
        full = [size * d for size, d in zip(walk.positions, walk.dilation, strict=True)]
        x = _resized(x.reshape(batch, *full, x.shape[-1]), range(1, n + 1), walk.tokens)
    x = x.reshape(batch, math.prod(walk.tokens), -1, walk.head_dim)
    return x[:, :, :heads, :channels]


def as_columns(x: Float[Array, "B G *P C"], walk: Walk) -> Float[Array, "B G *Q C"]:
    """A map of what chunks are read of, with zeros around it where chunks reach beyond it."""
    widths = [
        (axis.shift, axis.columns - axis.shift - size)
        for axis, size in zip(walk.axes, walk.positions, strict=True)
    ]
    if not any(map(any, widths)):
        return x
    return jnp.pad(x, ((0, 0), (0, 0), *widths, (0, 0)))


def pack_rows(x: Float[Array, "B T N"], walk: Walk) -> Float[Array, "B H tiles rows"]:
    """What there is one of for each row and head, tile by tile; zeros where there is none."""
    batch, heads, n = x.shape[0], x.shape[-1], len(walk.tokens)
    x = x.reshape(batch, *walk.tokens, heads)
    x = _resized(x, range(1, n + 2), (*_full(walk), heads + -heads % walk.heads))
    axes = [(axis.per_group, axis.tile, axis.window.dilation) for axis in walk.axes]
    x = x.reshape(batch, *itertools.chain(*axes), x.shape[-1])
    tiles = [1 + 3 * i + part for i in range(n) for part in (2, 0)]
    rows = [2 + 3 * i for i in range(n)]
    x = x.transpose(0, 1 + 3 * n, *tiles, *rows)
    return x.reshape(batch, x.shape[1], walk.num_tiles, walk.num_rows)


def unpack_rows(x: Float[Array, "B H tiles rows"], walk: Walk, heads: int) -> Float[Array, "B T N"]:
    """The transpose of `pack_rows`."""
    batch, n = x.shape[0], len(walk.tokens)
    tiles = itertools.chain(*((axis.window.dilation, axis.per_group) for axis in walk.axes))
    x = x.reshape(*x.shape[:2], *tiles, *walk.tile)
    within = [part for i in range(n) for part in (3 + 2 * i, 2 + 2 * n + i, 2 + 2 * i)]
    x = x.transpose(0, *within, 1).reshape(batch, *_full(walk), -1)
    x = _resized(x, range(1, n + 2), (*walk.tokens, heads))
    return x.reshape(batch, math.prod(walk.tokens), heads)


def pack_columns(
    x: Float[Array, "B T N P"], walk: Walk
) -> Float[Array, "B H tiles chunks*P columns"]:
    """What there are P of for each column and head, for every chunk of every tile.

    Chunks of different tiles overlap, so a column is there as often as tiles meet it.
    """
    heads, parts, n = x.shape[2], x.shape[3], len(walk.tokens)
    x = x.transpose(0, 2, 3, 1).reshape(x.shape[0], heads, parts, *walk.tokens)
    x = _resized(x, [1], [heads + -heads % walk.heads])
    for i, axis in enumerate(walk.axes):
        x = _chunks_along(x, 3 + 3 * i, axis)
    tiles, chunks, columns = ([3 + 3 * i + part for i in range(n)] for part in range(3))
    x = x.transpose(0, 1, *tiles, *chunks, 2, *columns)
    most = math.prod(walk.most_chunks)
    return x.reshape(*x.shape[:2], walk.num_tiles, most * parts, walk.num_columns)


def _chunks_along(x: Array, at: int, axis: AxisWalk) -> Array:
    """An axis of tokens as three: tiles, the most chunks that one has, and columns of a chunk."""
    d, shift = axis.window.dilation, axis.shift
    length = max(axis.columns, max(axis.starts) + axis.halo)
    x = jnp.pad(
        x,
        [
            (shift * d, length * d - shift * d - x.shape[at]) if i == at else (0, 0)
            for i in range(x.ndim)
        ],
    )
    slabs = []
    for tile, start in enumerate(axis.starts):
        first = start * d + tile // axis.per_group
        stop = first + (axis.halo - 1) * d + 1
        slabs.append(jax.lax.slice_in_dim(x, first, stop, d, axis=at))
    stacked = jnp.stack(slabs, axis=at)
    return stacked.reshape(*stacked.shape[: at + 1], -1, axis.chunk, *stacked.shape[at + 2 :])


def _full(walk: Walk) -> tuple[int, ...]:
    """Tokens along each axis if all tiles were full."""
    return tuple(axis.num_tiles * axis.tile for axis in walk.axes)


def _interleaved(*sizes: Sequence[int]) -> list[int]:
    return list(itertools.chain(*zip(*sizes, strict=True)))


def _resized(x: Array, axes: Sequence[int], sizes: Sequence[int]) -> Array:
    """Axes with zeros at the end, or without their last entries, of given lengths."""
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    kept = tuple(slice(min(have, size)) for have, size in zip(x.shape, shape, strict=True))
    widths = [(0, max(0, size - have)) for have, size in zip(x.shape, shape, strict=True)]
    return jnp.pad(x[kept], widths)
