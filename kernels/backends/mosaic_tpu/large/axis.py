"""Along one axis: tiles of rows, the chunks of columns that each meets, and who sees whom there."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from natjax.kernels.backends.mosaic_tpu.layout import round_up
from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import AxisBlocks, Rows, columns_met


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisWalk(AxisBlocks):
    """Blocks along an axis, whose chunks begin where each tile needs them.

    Attributes:
      shift: columns of zeros in front of the first position, in the array that chunks are read of.
      columns: columns of that array.
      starts: column of the array at which the first chunk of each tile begins.
      counts: chunks of each tile, one at least.
    """

    shift: int
    columns: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    def locate(self, tile: Any) -> tuple[Any, Any, Any]:
        """Dilation group, first row position and first column position of tiles (NumPy)."""
        group, first = tile // self.per_group, tile % self.per_group * self.tile
        return group, first, np.asarray(self.starts)[tile] - self.shift

    def column_of(self, tile: int, chunk: int) -> int:
        """Column of the array at which a chunk of a tile begins."""
        return self.starts[tile] + chunk * self.chunk


@dataclasses.dataclass(frozen=True, eq=False)
class AxisMasks:
    """Which rows and columns of each block see one another.

    Attributes:
      kind: of each chunk of each tile, a number of ``seen``; 0 where a tile has fewer chunks.
      is_whole: whether every row that exists sees all columns of the chunk.
      is_full: whether all rows of each tile exist.
      seen: the different blocks.
    """

    kind: Int[np.ndarray, "tiles chunks"]
    is_whole: Bool[np.ndarray, "tiles chunks"]
    is_full: Bool[np.ndarray, "tiles"]
    seen: Bool[np.ndarray, "kinds tile chunk"]


@functools.lru_cache(2048)
def columns_needed(
    window: AxisWindow, rows: Rows, tile: int, alignment: int
) -> tuple[int, Int[np.ndarray, "tiles"], Int[np.ndarray, "tiles"]]:
    """The columns that tiles meet: the shift of the array that they are columns of, the first one,
    a multiple of the alignment, and how many from there.

    The shift is the one that needs the fewest. A tile without any has one.
    """
    first, last = _met(window, rows, tile)
    shifts = range(alignment if window.max_group_length > alignment else 1)
    starts = [(first + shift) // alignment * alignment for shift in shifts]
    lengths = [last + shift - start for shift, start in zip(shifts, starts, strict=True)]
    best = min(shifts, key=lambda shift: round_up(int(lengths[shift].max()), alignment))
    return best, starts[best], lengths[best]


def _met(window: AxisWindow, rows: Rows, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """The first column position that each tile meets, and one past the last."""
    first, last = [], []
    for group in range(window.dilation):
        low, high = columns_met(window, rows, group)
        for row in range(0, window.max_group_length, tile):
            within = slice(row, row + tile)
            is_met = low[within] < high[within]
            # None behind the end of a short group, or where no query sees any of the keys.
            first.append(low[within][is_met].min() if is_met.any() else 0)
            last.append(high[within][is_met].max() if is_met.any() else 1)
    return np.array(first), np.array(last)


@functools.lru_cache(2048)
def axis_walk(window: AxisWindow, rows: Rows, tile: int, chunk: int, alignment: int) -> AxisWalk:
    """The walk along an axis.

    Args:
      window: the neighborhood along it.
      rows: whether tiles are of queries or of keys.
      tile: row positions of a tile.
      chunk: column positions of a chunk, a multiple of the alignment.
      alignment: chunks begin at multiples of it.
    """
    shift, starts, lengths = columns_needed(window, rows, tile, alignment)
    counts = -(-lengths // chunk)
    columns = round_up(shift + window.max_group_length, alignment)
    columns = max(columns, int(counts.max()) * chunk)
    # So that the last chunk ends within the array, whose columns are then not copied.
    starts = np.minimum(starts, columns - counts * chunk)
    return AxisWalk(
        window=window,
        rows=rows,
        tile=tile,
        chunk=chunk,
        offset=0,
        halo=int(counts.max()) * chunk,
        shift=shift,
        columns=columns,
        starts=tuple(map(int, starts)),
        counts=tuple(map(int, counts)),
    )


@functools.lru_cache(256)
def axis_masks(walk: AxisWalk) -> AxisMasks:
    """What the blocks along an axis look like."""
    shape = walk.num_tiles, max(walk.counts)
    kind, is_whole = np.zeros(shape, np.int32), np.zeros(shape, bool)
    is_full = np.zeros(shape[0], bool)
    kinds: dict[bytes, int] = {}
    examples = []
    for tile, count in enumerate(walk.counts):
        seen, exists = _seen(walk, tile)
        is_full[tile] = exists.all()
        for i, block in enumerate(np.split(seen[:, : count * walk.chunk], count, axis=1)):
            key = np.packbits(block).tobytes()
            if key not in kinds:
                kinds[key] = len(examples)
                examples.append(block)
            kind[tile, i] = kinds[key]
            is_whole[tile, i] = block[exists].all()
    return AxisMasks(kind, is_whole, is_full, np.stack(examples))


def _seen(walk: AxisWalk, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a tile see which columns of its chunks, and which of the rows exist."""
    group, first, start = walk.locate(np.int64(tile))
    row, column = first + np.arange(walk.tile), start + np.arange(walk.halo)
    length = walk.window.group_length(group)
    exists = (column >= 0) & (column < length)
    seen = walk.is_neighbor(row[:, None], column[None], group) & exists[None]
    return seen & (row < length)[:, None], row < length
