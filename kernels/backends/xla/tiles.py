"""Cutting an axis into query tiles and the slab of keys that each tile needs.

The queries of each dilation group are cut into tiles of ``size`` positions. Where they do not
divide a group the last tile starts earlier, and has queries again that the one before it has. Every
tile gets a *slab* of ``halo`` consecutive keys that holds the windows of all its queries. Slabs end
inside the axis; where windows go round, the axis is taken to go on beyond its ends.

All of this is NumPy at trace time, from `natjax.kernels.plan.frame`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
from jaxtyping import Bool, Int

from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.plan.frame import AxisFrame, axis_frame

type Tiles = tuple[AxisTiles, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AxisTiles:
    """Tiles and slabs of one axis; dilation groups one after the other, ``A`` tiles in all.

    Attributes:
      frame: where queries and keys are.
      size: query positions in a tile.
      halo: key positions in a slab.
      group: dilation group of each tile.
      query_start: first query position of each tile.
      key_start: first key position of each tile's slab; below 0 where it goes round.
      start: first key position that each query sees, relative to its slab, for each origin.
      end: position just past the last key that each query sees, relative to its slab.
      is_new: whether no tile before has the query.
    """

    frame: AxisFrame
    size: int
    halo: int
    group: Int[np.ndarray, "A"]
    query_start: Int[np.ndarray, "A"]
    key_start: Int[np.ndarray, "A"]
    start: Int[np.ndarray, "P A t"]
    end: Int[np.ndarray, "P A t"]
    is_new: Bool[np.ndarray, "A t"]

    @property
    def window(self) -> AxisWindow:
        """The neighborhood along the axis."""
        return self.frame.window

    @property
    def count(self) -> int:
        """Tiles in all, ``A``."""
        return len(self.group)

    @property
    def waste(self) -> float:
        """Queries computed for each query there is, at least 1 (ragged tiles and groups)."""
        return self.count * self.size / self.window.num_queries

    @property
    def is_ragged(self) -> bool:
        """Whether some queries are in two tiles."""
        return not self.is_new.all()

    @property
    def key_span(self) -> tuple[int, int]:
        """First key position, and one past the last, of all slabs and the axis itself."""
        last = int(self.key_start.max()) + self.halo
        return min(0, int(self.key_start.min())), max(self.frame.key_positions, last)

    @property
    def bias_shift(self) -> Int[np.ndarray, "A"]:
        """The bias index of the first query of each tile and the first key of its slab."""
        shift = self.key_start - self.query_start - self.frame.ahead
        return (shift + self.window.kernel_size - 1).astype(np.int32)

    @property
    def query_tokens(self) -> Int[np.ndarray, "P A t"]:
        """Token of each query of each tile, for each origin; past the end of the axis, any."""
        return self._tokens(self.query_start[:, None] + np.arange(self.size))

    @property
    def key_tokens(self) -> Int[np.ndarray, "P A h"]:
        """Token of each key of each slab, for each origin; of those outside the axis, any."""
        return self._tokens(self.key_start[:, None] + np.arange(self.halo) - self.frame.ahead)

    def _tokens(self, position: Int[np.ndarray, "A n"]) -> Int[np.ndarray, "P A n"]:
        index = position * self.window.dilation + self.group[:, None]
        origins = np.asarray(self.window.origins)[:, None, None]
        tokens = origins + self.window.query_range[0] + index
        return (tokens % self.window.length).astype(np.int32)

    def kinds(self) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "A"]]:
        """Tiles of one kind look alike: the first tile of each kind, and the kind of each tile."""
        columns = [x for ends in (self.start, self.end) for x in ends]
        looks = np.concatenate([self.bias_shift[:, None], *columns], axis=1)
        _, first, kind = np.unique(looks, axis=0, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)


@functools.cache
def axis_tiles(window: AxisWindow, size: int) -> AxisTiles:
    """Tiles of ``size`` query positions along an axis, with the smallest slabs that do.

    ``size`` is at most the number of positions of the longest dilation group of queries.
    """
    frame = axis_frame(window)
    d, positions = window.dilation, frame.query_positions
    tile_start = np.arange(0, positions, size)
    query_start = np.minimum(tile_start, positions - size)
    position = query_start[:, None] + np.arange(size)
    start, end = (x[:, :, position] for x in (frame.start, frame.end))
    first, last = start.min((0, 1, 3)), end.max((0, 1, 3))
    halo = int((last - first).max())
    key_start = first if window.is_circle else np.minimum(first, frame.key_positions - halo)
    start, end = (x - key_start[:, None] for x in (start, end))
    return AxisTiles(
        frame=frame,
        size=size,
        halo=halo,
        group=np.repeat(np.arange(d), len(tile_start)),
        query_start=np.tile(query_start, d),
        key_start=np.tile(key_start, d),
        start=start.reshape(len(start), -1, size).astype(np.int32),
        end=end.reshape(len(end), -1, size).astype(np.int32),
        is_new=np.tile(position >= tile_start[:, None], (d, 1)),
    )


def choose_tiles(neighborhood: Neighborhood, overhead: int, most_logits: int) -> Tiles:
    """The tiles of least work: logits computed, plus the cost of cutting the slabs.

    Args:
      neighborhood: the neighborhood.
      overhead: cost of moving one key into a slab, in units of the cost of one logit. Larger
        values give larger tiles.
      most_logits: the most logits of a tile, unless the smallest tiles have more.
    """
    options = [[axis_tiles(axis, size) for size in _sizes(axis)] for axis in neighborhood.axes]

    def cost(tiles: Tiles) -> tuple[int, float]:
        keys = math.prod(t.halo for t in tiles)
        queries = math.prod(t.size for t in tiles)
        work = math.prod(t.waste for t in tiles) * keys * (1 + overhead / queries)
        return max(keys * queries - most_logits, 0), work

    return min(itertools.product(*options), key=cost)


def _sizes(axis: AxisWindow) -> list[int]:
    """Tile sizes worth a look, from 1 to 2 K: the fewest queries for each number of tiles."""
    n = axis_frame(axis).query_positions
    largest = max(2 * axis.kernel_size, 16)
    sizes = sorted({-(-n // tiles) for tiles in range(1, n + 1)})
    kept = [size for size in sizes if size <= largest]
    # A long axis has many sizes that hardly differ.
    step = -(-len(kept) // 24)
    return [*kept[:0:-step], 1]


def numbers_along(tiles: Tiles) -> list[Int[np.ndarray, "A"]]:
    """Along each axis, the number of each of all tiles, which are counted row-major."""
    counts = [axis.count for axis in tiles]
    return list(np.unravel_index(np.arange(math.prod(counts)), counts))
