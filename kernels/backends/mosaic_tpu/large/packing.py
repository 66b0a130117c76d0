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
from natjax.kernels.plan.blocks import Rows


def as_map(x: Float[Array, "B T N D"], walk: Walk, of: Rows) -> Float[Array, "B G *P C"]:
    """Positions along their axes; heads and their channels filled up with zeros.

    Dilation groups are as long as the longest, with zeros around what is at hand.
    """
    batch, tokens, heads, channels = x.shape
    missing = (-heads % walk.heads, walk.head_dim - channels)
    if any(missing):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
    return _grouped(x.reshape(batch, tokens, x.shape[2] * x.shape[3]), walk, of)


def _grouped(x: Float[Array, "B T C"], walk: Walk, of: Rows) -> Float[Array, "B G *P C"]:
    """Tokens as the positions of dilation groups, all as long as the longest."""
    tokens, positions = walk.tokens(of), walk.positions(of)
    batch, n = x.shape[0], len(tokens)
    x = x.reshape(batch, *(size for _, size in tokens), x.shape[-1])
    if walk.num_groups == 1:
        return x[:, None]
    axes = zip(positions, walk.dilation, tokens, strict=True)
    widths = [(before, size * d - before - own) for size, d, (before, own) in axes]
    x = jnp.pad(x, ((0, 0), *widths, (0, 0)))
    # A token's number is its position times the dilation, plus its group.
    x = x.reshape(batch, *_interleaved(positions, walk.dilation), x.shape[-1])
    x = x.transpose(0, *(2 + 2 * i for i in range(n)), *(1 + 2 * i for i in range(n)), 1 + 2 * n)
    return x.reshape(batch, walk.num_groups, *positions, x.shape[-1])


def from_map(
    x: Float[Array, "B G *P C"], walk: Walk, heads: int, channels: int
) -> Float[Array, "B T N D"]:
    """The transpose of `as_map`, of a map of what rows are."""
    tokens, positions = walk.tokens(walk.rows), walk.positions(walk.rows)
    batch, n = x.shape[0], len(tokens)
    if walk.num_groups > 1:
        x = x.reshape(batch, *walk.dilation, *positions, x.shape[-1])
        within = [1 + part + i for i in range(n) for part in (n, 0)]
        x = x.transpose(0, *within, 1 + 2 * n)
        full = [size * d for size, d in zip(positions, walk.dilation, strict=True)]
        x = x.reshape(batch, *full, x.shape[-1])
        x = x[:, *(slice(before, before + own) for before, own in tokens)]
    x = x.reshape(batch, math.prod(own for _, own in tokens), -1, walk.head_dim)
    return x[:, :, :heads, :channels]


def as_columns(x: Float[Array, "B G *P C"], walk: Walk) -> Float[Array, "B G *Q C"]:
    """A map of what chunks are read of, with zeros around it where chunks reach beyond it."""
    widths = [
        (axis.shift, axis.columns - axis.shift - size)
        for axis, size in zip(walk.axes, walk.positions(walk.others), strict=True)
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
    return _grouped(x.reshape(*x.shape[:2], -1), walk, "queries")


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
    """What there is one of for each query and head, from what kernels write tile by tile."""
    batch, n = x.shape[0], len(walk.axes)
    tiles = itertools.chain(*((axis.window.dilation, axis.per_group) for axis in walk.axes))
    x = x.reshape(*x.shape[:2], *tiles, *walk.tile)
    within = [part for i in range(n) for part in (3 + 2 * i, 2 + 2 * n + i, 2 + 2 * i)]
    x = x.transpose(0, *within, 1).reshape(batch, *_full(walk), -1)
    tokens = [own for _, own in walk.tokens("queries")]
    x = x[:, *(slice(own) for own in tokens), :heads]
    return x.reshape(batch, math.prod(tokens), heads)


def _full(walk: Walk) -> tuple[int, ...]:
    """Tokens along each axis if all tiles were full."""
    return tuple(axis.num_tiles * axis.tile for axis in walk.axes)


def _interleaved(*sizes: Sequence[int]) -> list[int]:
    return list(itertools.chain(*zip(*sizes, strict=True)))
