"""Cutting an axis into query tiles and the slab of keys that each tile needs.

The queries of each dilation group are cut into tiles of ``size`` positions; the last one may be
ragged. Every tile gets a *slab* of ``halo`` consecutive keys that holds the windows of all its
queries. Slabs start at ``clip(size * tile + offset, 0, positions - halo)``: evenly spaced but for
the borders, so that all of them are static slices and blocks of one array, whose transpose is a sum
of pads and never a scatter. Where windows go round, slabs are evenly spaced without exception, and
those that reach over an end are two slices.

All of this is NumPy at trace time, from `natjax.kernels.plan.frame`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.plan.frame import AxisFrame, axis_frame, merge_groups, split_groups
from natjax.kernels.plan.slabs import fit_slabs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AxisTiles:
    """Tiles and slabs of one axis; dilation groups one after the other, ``A`` tiles in all.

    Attributes:
      frame: where queries and keys are.
      size: query positions in a tile.
      halo: key positions in a slab.
      key_start: first key position of each tile's slab.
      start: first key position that each query sees, relative to its slab, for each origin.
      end: position just past the last key that each query sees, relative to its slab.
    """

    frame: AxisFrame
    size: int
    halo: int
    key_start: Int[np.ndarray, "A"]
    start: Int[np.ndarray, "P A t"]
    end: Int[np.ndarray, "P A t"]

    @property
    def window(self) -> AxisWindow:
        """The neighborhood along the axis."""
        return self.frame.window

    @property
    def per_group(self) -> int:
        """Tiles in a dilation group."""
        return -(-self.frame.query_positions // self.size)

    @property
    def count(self) -> int:
        """Tiles in all, ``A``."""
        return self.per_group * self.window.dilation

    @property
    def waste(self) -> float:
        """Queries computed for each query there is, at least 1 (ragged tiles and groups)."""
        return self.count * self.size / self.window.num_queries

    @property
    def query_tokens(self) -> Int[np.ndarray, "P A t"]:
        """Token of each query of each tile, for each origin; past the end of the axis, any."""
        group, tile = np.divmod(np.arange(self.count)[:, None], self.per_group)
        position = tile * self.size + np.arange(self.size)[None]
        return self._tokens(position * self.window.dilation + group, self.window.query_range[0])

    @property
    def key_tokens(self) -> Int[np.ndarray, "P A h"]:
        """Token of each key of each slab, for each origin; of those outside the axis, any."""
        group = np.arange(self.count)[:, None] // self.per_group
        position = self.key_start[:, None] + np.arange(self.halo)[None] - self.frame.ahead
        return self._tokens(position * self.window.dilation + group, self.window.query_range[0])

    def _tokens(self, index: Int[np.ndarray, "A n"], first: int) -> Int[np.ndarray, "P A n"]:
        origins = np.asarray(self.window.origins)[:, None, None]
        return ((origins + first + index[None]) % self.window.length).astype(np.int32)

    @property
    def shifts(self) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "A"]]:
        """The distinct distances from tile to slab, few; and which of them each tile has."""
        tile_start = np.tile(np.arange(self.per_group) * self.size, self.window.dilation)
        return np.unique(self.key_start - tile_start, return_inverse=True)

    def bias_index(self) -> Int[np.ndarray, "S t h"]:
        """For each distinct shift, the bias index of each query and slab slot, clipped to range."""
        k = self.window.kernel_size
        query, slot = np.arange(self.size)[:, None], np.arange(self.halo)[None, :]
        relative = self.shifts[0][:, None, None] + (slot - query)[None] - self.frame.ahead
        return np.clip(relative + k - 1, 0, 2 * k - 2)


@functools.cache
def axis_tiles(window: AxisWindow, size: int) -> AxisTiles:
    """Tiles of ``size`` query positions along an axis, with the smallest slabs that do."""
    frame = axis_frame(window)
    d, positions = window.dilation, frame.key_positions
    per_group = -(-frame.query_positions // size)
    # Positions past the end of a group repeat its last query; their results are thrown away.
    position = np.minimum(np.arange(per_group * size), frame.query_positions - 1)
    start, end = (
        x[:, :, position].reshape(-1, d, per_group, size) for x in (frame.start, frame.end)
    )
    first, last = start.min((0, 1, 3)), end.max((0, 1, 3))
    tile_start = np.arange(per_group) * size
    if window.is_circle:
        offset = int((first - tile_start).min())
        halo = int((last - tile_start).max()) - offset
        key_start = tile_start + offset
    else:
        offset, halo = fit_slabs(first, last, size, positions)
        key_start = np.clip(tile_start + offset, 0, positions - halo)
    start, end = (x - key_start[:, None] for x in (start, end))
    return AxisTiles(
        frame=frame,
        size=size,
        halo=halo,
        key_start=np.tile(key_start, d),
        start=start.reshape(-1, d * per_group, size).astype(np.int32),
        end=end.reshape(-1, d * per_group, size).astype(np.int32),
    )


def choose_tiles(neighborhood: Neighborhood, overhead: int) -> tuple[AxisTiles, ...]:
    """The tiles of least work: logits computed, plus the cost of cutting the slabs.

    Args:
      neighborhood: the neighborhood.
      overhead: cost of moving one key into a slab, in units of the cost of one logit. Larger
        values give larger tiles.
    """
    options = [[axis_tiles(axis, size) for size in _sizes(axis)] for axis in neighborhood.axes]

    def cost(tiles: tuple[AxisTiles, ...]) -> float:
        keys = math.prod(t.halo for t in tiles)
        queries = math.prod(t.size for t in tiles)
        return math.prod(t.waste for t in tiles) * keys * (1 + overhead / queries)

    return min(itertools.product(*options), key=cost)


def _sizes(axis: AxisWindow) -> list[int]:
    """Tile sizes worth a look: the fewest queries for each number of tiles, 2 K at most."""
    n = axis_frame(axis).query_positions
    largest = max(2 * axis.kernel_size, 16)
    sizes = {-(-n // tiles) for tiles in range(1, n + 1)}
    smallest = max(1, axis.kernel_size // 4)
    kept = sorted(size for size in sizes if smallest <= size <= largest) or [min(n, largest)]
    # A long axis has many sizes that hardly differ.
    step = -(-len(kept) // 24)
    return kept[::-1][::step]


def split_queries(x: Array, axis: int, tiles: AxisTiles) -> Array:
    """Replace a token axis by ``(A, size)``."""
    x = split_groups(x, axis, tiles.window.dilation, tiles.per_group * tiles.size)
    return x.reshape(*x.shape[:axis], tiles.count, tiles.size, *x.shape[axis + 2 :])


def merge_queries(x: Array, axis: int, tiles: AxisTiles) -> Array:
    """Inverse of `split_queries`, on the axes ``axis`` and ``axis + 1``."""
    d = tiles.window.dilation
    x = x.reshape(*x.shape[:axis], d, tiles.per_group * tiles.size, *x.shape[axis + 2 :])
    return merge_groups(x, axis, tiles.window.num_queries)


def split_keys(x: Array, axis: int, tiles: AxisTiles) -> Array:
    """Replace a token axis by the slabs ``(A, halo)``, which overlap."""
    x = tiles.frame.split_keys(x, axis)
    x = _cut_slabs(x, axis + 1, tiles)
    return x.reshape(*x.shape[:axis], tiles.count, tiles.halo, *x.shape[axis + 3 :])


def _cut_slabs(x: Array, axis: int, tiles: AxisTiles) -> Array:
    """Replace an axis of positions by ``(tiles, halo)``: border slabs, and between them blocks."""
    starts = tiles.key_start[: tiles.per_group]
    within = (starts >= 0) & (starts + tiles.halo <= x.shape[axis])
    spaced = np.flatnonzero((np.diff(starts) == tiles.size) & within[:-1] & within[1:])
    # With few slabs in between, cutting each by itself is as good.
    low, high = (int(spaced[0]), int(spaced[-1]) + 2) if len(spaced) > 4 else (0, 0)

    def border(begin: int, stop: int) -> list[Array]:
        cuts = (cut_round(x, axis, int(s), int(s) + tiles.halo) for s in starts[begin:stop])
        return [jnp.expand_dims(cut, axis) for cut in cuts]

    between = [_cut_blocks(x, axis, tiles, int(starts[low]), high - low)] if high else []
    parts = [*border(0, low), *between, *border(high, len(starts))]
    return jnp.concatenate(parts, axis=axis)


def cut_round(x: Array, axis: int, start: int, stop: int) -> Array:
    """Positions ``start`` to ``stop`` of an axis, from the other end where they are outside."""
    length = x.shape[axis]
    pieces = []
    while start < stop:
        begin = start % length
        end = min(begin + stop - start, length)
        pieces.append(jax.lax.slice_in_dim(x, begin, end, axis=axis))
        start += end - begin
    return jnp.concatenate(pieces, axis=axis) if len(pieces) > 1 else pieces[0]


def _cut_blocks(x: Array, axis: int, tiles: AxisTiles, start: int, count: int) -> Array:
    """``count`` slabs, the first at ``start`` and each ``size`` after the last.

    A slab is a tile-sized block, the block after it, and so on, the last one cut short: one strided
    reshape of ``x`` for each of these, not one slice for each slab.
    """
    pieces = []
    for begin in range(0, tiles.halo, tiles.size):
        width = min(tiles.size, tiles.halo - begin)
        stop = start + begin + (count - 1) * tiles.size + width
        piece = jax.lax.slice_in_dim(x, start + begin, stop, axis=axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, tiles.size - width)
        piece = jnp.pad(piece, padding)
        piece = piece.reshape(*x.shape[:axis], count, tiles.size, *x.shape[axis + 1 :])
        pieces.append(jax.lax.slice_in_dim(piece, 0, width, axis=axis + 1))
    return jnp.concatenate(pieces, axis=axis + 1)
