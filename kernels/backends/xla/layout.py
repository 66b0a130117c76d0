"""Where tiles and slabs are in arrays of tokens, and how a tile lays them out for its products."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from natjax.kernels.backends.xla.tiles import Tiles, numbers_along
from natjax.kernels.backends.xla.walk import Boxes
from natjax.kernels.plan.frame import cut_round, merge_positions, split_positions


def place_queries(x: Shaped[Array, "B *X N D"], tiles: Tiles) -> Shaped[Array, "B *Y N D"]:
    """Each token axis as positions and dilation groups: a box holds positions of one group."""
    for j, axis in reversed(list(enumerate(tiles))):
        x = split_positions(x, 1 + j, axis.window.dilation, axis.frame.query_positions)
    return x


def merge_queries(x: Shaped[Array, "B *Y N D"], tiles: Tiles) -> Shaped[Array, "B *X N D"]:
    """Inverse of `place_queries`."""
    for j, axis in enumerate(tiles):
        x = merge_positions(x, 1 + j, axis.window.num_queries)
    return x


def place_keys(x: Shaped[Array, "B *X M D"], tiles: Tiles) -> Shaped[Array, "B *Y M D"]:
    """As `place_queries`; an axis that goes round goes on as far as slabs reach."""
    for j, axis in reversed(list(enumerate(tiles))):
        x = axis.frame.split_key_positions(x, 1 + j)
        if axis.key_span != (0, axis.frame.key_positions):
            x = cut_round(x, 1 + j, *axis.key_span)
    return x


def query_boxes(tiles: Tiles) -> Boxes:
    """Where the tiles are in what `place_queries` makes of queries."""
    starts = [axis.query_start for axis in tiles]
    is_partition = not any(axis.is_ragged for axis in tiles)
    return _boxes(tiles, [axis.size for axis in tiles], starts, is_partition=is_partition)


def key_boxes(tiles: Tiles) -> Boxes:
    """Where the slabs are in what `place_keys` makes of keys and values."""
    starts = [axis.key_start - axis.key_span[0] for axis in tiles]
    return _boxes(tiles, [axis.halo for axis in tiles], starts, is_partition=False)


def _boxes(
    tiles: Tiles, sizes: list[int], starts: list[Int[np.ndarray, "_"]], *, is_partition: bool
) -> Boxes:
    along = []
    for axis, start, number in zip(tiles, starts, numbers_along(tiles), strict=True):
        along += [start[number], axis.group[number]]
    whole = np.zeros_like(along[0])
    table = np.stack([whole, *along, whole, whole], axis=1).astype(np.int32)
    shape = [side for size in sizes for side in (size, 1)]
    return Boxes((None, *shape, None, None), table, is_partition)


def new_queries(tile: Int[Array, ""], tiles: Tiles) -> Bool[Array, "*t 1 1"] | None:
    """Which queries of a tile no tile before it has, to be broadcast; None where all are."""
    if not any(axis.is_ragged for axis in tiles):
        return None
    numbers = jnp.unravel_index(tile, [axis.count for axis in tiles])
    along = [jnp.asarray(a.is_new)[i] for a, i in zip(tiles, numbers, strict=True)]
    grid = functools.reduce(jnp.logical_and, jnp.meshgrid(*along, indexing="ij", sparse=True))
    return grid.reshape(*(side for axis in tiles for side in (axis.size, 1)), 1, 1)


# Products want batch and heads first and head_dim last; of other orders XLA makes copies on a CPU
# that cost more than the products. Heads are moved while tokens have their axes, since the copy
# is slow if they are made one in it.


def by_query_head(x: Float[Array, "B *t N D"], heads: tuple[int, int]) -> Float[Array, "B M Q D"]:
    """Queries of a tile; ``Q`` are the heads of one key head, one after the other, times tokens."""
    x = x.reshape(*x.shape[:-2], *heads, x.shape[-1])
    x = jnp.moveaxis(x, (-3, -2), (1, 2))
    return jax.lax.collapse(x, 2, x.ndim - 1)


def by_token(
    x: Float[Array, "B M Q D"], groups: int, tokens: tuple[int, ...]
) -> Float[Array, "B *t N D"]:
    """Inverse of `by_query_head`."""
    x = x.reshape(*x.shape[:2], groups, *tokens, x.shape[-1])
    return jax.lax.collapse(jnp.moveaxis(x, (1, 2), (-3, -2)), x.ndim - 3, x.ndim - 1)


def by_key_head(x: Shaped[Array, "B *h M D"]) -> Shaped[Array, "B M k D"]:
    """Keys or values of a slab, or what there is of each."""
    x = jnp.moveaxis(x, -2, 1)
    return jax.lax.collapse(x, 2, x.ndim - 1)


def by_key(x: Float[Array, "B M k D"], tokens: tuple[int, ...]) -> Float[Array, "B *h M D"]:
    """Inverse of `by_key_head`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], *tokens, x.shape[-1]), 1, -2)
