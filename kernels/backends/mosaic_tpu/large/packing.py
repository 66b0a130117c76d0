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

from natjax.kernels.backends.mosaic_tpu.large.chunk import HEADS_OF_STATISTICS, STATISTIC_LANES
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
    return _grouped(x.reshape(batch, *walk.tokens, x.shape[2] * x.shape[3]), walk)


def _grouped(x: Float[Array, "B *X C"], walk: Walk) -> Float[Array, "B G *P C"]:
    """Tokens as the positions of dilation groups, all as long as the longest."""
    if walk.num_groups == 1:
        return x[:, None]
    batch, n = x.shape[0], len(walk.tokens)
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


def statistics(lse: Float[Array, "B T N"], delta: Float[Array, "B T N"], walk: Walk) -> Array:
    """Two float32 numbers of each query and head as a map, 16 heads in 128 lanes.

    Each number is the sum of three of bfloat16, which hold all its digits; `Step.of_query` adds
    them up again. So kernels have them along rows or columns, as they need them.
    """
    parts = [part for x in (lse, delta) for part in _in_three(x)]
    x = jnp.stack(parts, axis=-1)
    missing = -x.shape[2] % HEADS_OF_STATISTICS
    x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, STATISTIC_LANES - len(parts))))
    return _grouped(x.reshape(x.shape[0], *walk.tokens, -1), walk)


def _in_three(x: Float[Array, "B T N"]) -> list[Array]:
    """Numbers of bfloat16 whose sum is a number of float32."""
    parts = []
    for _ in range(3):
        # Rounded where no compiler can leave it out as excess precision.
        part = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts


def unpack_rows(x: Float[Array, "B H tiles rows"], walk: Walk, heads: int) -> Float[Array, "B T N"]:
    """What there is one of for each row and head, from what kernels write tile by tile."""
    batch, n = x.shape[0], len(walk.tokens)
    tiles = itertools.chain(*((axis.window.dilation, axis.per_group) for axis in walk.axes))
    x = x.reshape(*x.shape[:2], *tiles, *walk.tile)
    within = [part for i in range(n) for part in (3 + 2 * i, 2 + 2 * n + i, 2 + 2 * i)]
    x = x.transpose(0, *within, 1).reshape(batch, *_full(walk), -1)
    x = _resized(x, range(1, n + 2), (*walk.tokens, heads))
    return x.reshape(batch, math.prod(walk.tokens), heads)


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
