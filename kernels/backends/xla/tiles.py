"""Cutting an axis into query tiles and the slab of keys that each tile needs.

The queries of each dilation group are cut into tiles of ``size`` positions. Where they do not
divide a group the last tile starts earlier, and has queries again that the one before it has. Every
tile gets a *slab* of ``halo`` consecutive keys that holds the windows of all its queries and ends
inside the axis.

All of this is NumPy at trace time, from `natjax.kernels.neighborhood`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from natjax.kernels.neighborhood import AxisWindow, Neighborhood


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AxisTiles:
    """Tiles and slabs of one axis; dilation groups one after the other, ``A`` tiles in all.

    Attributes:
      window: the neighborhood along the axis.
      size: query positions in a tile.
      halo: key positions in a slab.
      group: dilation group of each tile.
      query_start: first query position of each tile.
      key_start: first key position of each tile's slab.
      start: first key position that each query sees, relative to its slab.
      end: position just past the last key that each query sees, relative to its slab.
      is_new: whether no tile before has the query.
    """

    window: AxisWindow
    size: int
    halo: int
    group: Int[np.ndarray, "A"]
    query_start: Int[np.ndarray, "A"]
    key_start: Int[np.ndarray, "A"]
    start: Int[np.ndarray, "A t"]
    end: Int[np.ndarray, "A t"]
    is_new: Bool[np.ndarray, "A t"]

    @property
    def count(self) -> int:
        """Tiles in all, ``A``."""
        return len(self.group)

    @property
    def waste(self) -> float:
        """Queries computed for each query there is, at least 1 (ragged tiles and groups)."""
        return self.count * self.size / self.window.length

    def kinds(self) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "A"]]:
        """Tiles of one kind look alike: the first tile of each kind, and the kind of each tile."""
        shift = (self.key_start - self.query_start)[:, None]
        looks = np.concatenate([shift, self.start, self.end], axis=1)
        _, first, kind = np.unique(looks, axis=0, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)


@functools.cache
def axis_tiles(window: AxisWindow, size: int) -> AxisTiles:
    """Tiles of ``size`` query positions along an axis, with the smallest slabs that do.

    ``size`` is at most the length of the longest dilation group.
    """
    d, positions = window.dilation, window.max_group_length
    tile_start = np.arange(0, positions, size)
    query_start = np.minimum(tile_start, positions - size)
    position = query_start[:, None] + np.arange(size)
    is_new = position >= tile_start[:, None]
    groups = np.arange(d)[:, None, None]
    # Positions past the end of a group repeat its last query; their results are thrown away.
    query = np.minimum(position[None], window.group_length(groups) - 1) * d + groups
    start, end = window.start(query), window.end(query)
    first, last = start.min(axis=(0, 2)), end.max(axis=(0, 2))
    halo = int((last - first).max())
    key_start = np.minimum(first, positions - halo)
    return AxisTiles(
        window=window,
        size=size,
        halo=halo,
        group=np.repeat(np.arange(d), len(tile_start)),
        query_start=np.tile(query_start, d),
        key_start=np.tile(key_start, d),
        start=(start - key_start[:, None]).reshape(-1, size).astype(np.int32),
        end=(end - key_start[:, None]).reshape(-1, size).astype(np.int32),
        is_new=np.tile(is_new, (d, 1)),
    )


def choose_tiles(
    neighborhood: Neighborhood, overhead: int, most_logits: int
) -> tuple[AxisTiles, ...]:
    """The tiles of least work: logits computed, plus the cost of cutting the slabs.

    Args:
      neighborhood: the neighborhood.
      overhead: cost of moving one key into a slab, in units of the cost of one logit. Larger
        values give larger tiles.
      most_logits: the most logits of a tile, unless the smallest tiles have more.
    """
    options = [[axis_tiles(axis, size) for size in _sizes(axis)] for axis in neighborhood.axes]

    def cost(tiles: tuple[AxisTiles, ...]) -> tuple[int, float]:
        keys = math.prod(t.halo for t in tiles)
        queries = math.prod(t.size for t in tiles)
        work = math.prod(t.waste for t in tiles) * keys * (1 + overhead / queries)
        return max(keys * queries - most_logits, 0), work

    return min(itertools.product(*options), key=cost)


def _sizes(axis: AxisWindow) -> list[int]:
    """Tile sizes worth a look, from 1 to 2 K: the fewest queries for each number of tiles."""
    n = axis.max_group_length
    largest = max(2 * axis.kernel_size, 16)
    sizes = sorted({-(-n // tiles) for tiles in range(1, n + 1)})
    kept = [size for size in sizes if size <= largest]
    # A long axis has many sizes that hardly differ.
    step = -(-len(kept) // 24)
    return [*kept[:0:-step], 1]


def numbers_along(tiles: tuple[AxisTiles, ...]) -> list[Int[np.ndarray, "A"]]:
    """Along each axis, the number of each of all tiles, which are counted row-major."""
    counts = [axis.count for axis in tiles]
    return list(np.unravel_index(np.arange(math.prod(counts)), counts))


def split_groups(x: Array, axis: int, window: AxisWindow, positions: int) -> Array:
    """Replace a token axis by ``(dilation, positions)``, zero-padded at the end."""
    return jnp.swapaxes(split_positions(x, axis, window, positions), axis, axis + 1)


def merge_groups(x: Array, axis: int, window: AxisWindow) -> Array:
    """Inverse of `split_groups`, on the axes ``axis`` and ``axis + 1``."""
    return merge_positions(jnp.swapaxes(x, axis, axis + 1), axis, window)


def split_positions(x: Array, axis: int, window: AxisWindow, positions: int) -> Array:
    """Replace a token axis by ``(positions, dilation)``, zero-padded at the end."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, positions * window.dilation - window.length)
    if padding[axis][1]:
        x = jnp.pad(x, padding)
    return x.reshape(*x.shape[:axis], positions, window.dilation, *x.shape[axis + 1 :])


def merge_positions(x: Array, axis: int, window: AxisWindow) -> Array:
    """Inverse of `split_positions`, on the axes ``axis`` and ``axis + 1``."""
    x = x.reshape(*x.shape[:axis], x.shape[axis] * window.dilation, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, window.length, axis=axis)
