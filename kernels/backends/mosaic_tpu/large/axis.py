"""Along one axis: tiles of rows, the chunks of columns that each meets, and who sees whom there.

An axis may have a part of its tokens at hand, and several `origins`, as where tokens are split over
devices: what is at hand is then one of several parts. Parts whose windows are in the same places of
their arrays, as those are that have no border, count as one.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from natjax.kernels.backends.mosaic_tpu.layout import round_up
from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import Rows
from natjax.kernels.plan.frame import AxisFrame, axis_frame


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPairs:
    """The columns that each row sees, or is seen by, by positions in the arrays at hand.

    Attributes:
      first: of each row of each dilation group, the first such column.
      end: one past the last such column; not more than ``first`` where there is none.
      part_of: for each origin, which of the parts it is.
    """

    first: Int[np.ndarray, "parts d rows"]
    end: Int[np.ndarray, "parts d rows"]
    part_of: Int[np.ndarray, "origins"]


@functools.lru_cache(256)
def axis_pairs(window: AxisWindow, rows: Rows) -> AxisPairs:
    """The pairs of rows and columns at hand along an axis, which is no whole circle."""
    frame = axis_frame(window)
    exists = frame.exists("queries")
    spans = np.stack([np.where(exists, x, 0) for x in (frame.start, frame.end)], axis=1)
    different = {x.tobytes(): x for x in spans}
    numbers = {key: i for i, key in enumerate(different)}
    part_of = np.array([numbers[x.tobytes()] for x in spans])
    start, end = np.stack(list(different.values()), axis=1)
    if rows == "keys":
        start, end = _queries_of_keys(start, end, exists, frame.key_positions)
    return AxisPairs(start, end, part_of)


def _queries_of_keys(
    start: np.ndarray, end: np.ndarray, exists: np.ndarray, positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each key, the first query that sees it, and one past the last.

    Windows move only forward with the query, so those that hold a key are consecutive.
    """
    shape = (*start.shape[:-1], positions)
    first, last = np.zeros(shape, int), np.zeros(shape, int)
    key = np.arange(positions)
    for part, group in np.ndindex(shape[:-1]):
        queries = exists[group]
        first[part, group] = np.searchsorted(end[part, group, queries], key, side="right")
        last[part, group] = np.searchsorted(start[part, group, queries], key, side="right")
    return first, last


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisWalk:
    """Tiles along an axis, and the chunks of each, which begin where it needs them.

    Tiles are numbered one dilation group after the other, and one part after the other.

    Attributes:
      window: the neighborhood along the axis.
      rows: what the rows of a tile are; the columns of its chunks are the others.
      tile: row positions in a tile.
      chunk: column positions in a chunk.
      shift: columns of zeros in front of the first position, in the array that chunks are read of.
      columns: columns of that array.
      starts: column of the array at which the first chunk of each tile begins.
      counts: chunks of each tile, one at least.
    """

    window: AxisWindow
    rows: Rows
    tile: int
    chunk: int
    shift: int
    columns: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def frame(self) -> AxisFrame:
        """Where windows are in the arrays at hand."""
        return axis_frame(self.window)

    @property
    def part_of(self) -> Int[np.ndarray, "origins"]:
        """For each origin, which of the parts it is."""
        return axis_pairs(self.window, self.rows).part_of

    @property
    def per_group(self) -> int:
        """Tiles in a dilation group."""
        return -(-self.frame.positions(self.rows) // self.tile)

    @property
    def num_tiles(self) -> int:
        """Tiles of a part, one dilation group after the other."""
        return self.per_group * self.window.dilation

    @property
    def num_parts(self) -> int:
        """Parts that differ."""
        return len(self.counts) // self.num_tiles

    @property
    def num_steps(self) -> int:
        """Chunks of all tiles together, of the part that has most."""
        return int(np.reshape(self.counts, (self.num_parts, -1)).sum(axis=1).max())

    @property
    def ahead(self) -> int:
        """The column that has the token of a row, less the row."""
        return _ahead(self.frame, self.rows)

    def column_of(self, tile: Any, chunk: Any) -> Any:
        """Column of the array at which a chunk of a tile begins (NumPy)."""
        return np.asarray(self.starts)[tile] + chunk * self.chunk

    def distance(self, tile: Any, column: Any) -> Any:
        """How many positions the first column of a chunk is ahead of the first row of its tile.

        Args:
          tile: number of the tile in its dilation group.
          column: `column_of` the chunk.
        """
        return column - self.shift - self.ahead - tile * self.tile

    @property
    def distances(self) -> Int[np.ndarray, "kinds"]:
        """The different distances of chunks from their tiles, of all parts together."""
        steps = zip(*map(self.chunks, range(self.num_parts)), strict=True)
        tile, chunk = map(np.concatenate, steps)
        return np.unique(self.distance(tile % self.per_group, self.column_of(tile, chunk)))

    def chunks(self, part: int) -> tuple[Int[np.ndarray, "steps"], Int[np.ndarray, "steps"]]:
        """Of every chunk of every tile of a part: the tile, and the number of the chunk."""
        first = part * self.num_tiles
        counts = np.array(self.counts[first : first + self.num_tiles])
        tile = np.repeat(np.arange(len(counts)), counts)
        return first + tile, np.arange(len(tile)) - (np.cumsum(counts) - counts)[tile]


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
    positions = axis_frame(window).positions(others(rows))
    shifts = range(alignment if positions > alignment else 1)
    starts = [(first + shift) // alignment * alignment for shift in shifts]
    lengths = [last + shift - start for shift, start in zip(shifts, starts, strict=True)]
    best = min(shifts, key=lambda shift: round_up(int(lengths[shift].max()), alignment))
    return best, starts[best], lengths[best]


def others(rows: Rows) -> Rows:
    """What columns are."""
    return "keys" if rows == "queries" else "queries"


def _ahead(frame: AxisFrame, rows: Rows) -> int:
    """The column that has the token of a row, less the row."""
    return frame.ahead if rows == "queries" else -frame.ahead


def _met(window: AxisWindow, rows: Rows, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """The first column position that each tile meets, and one past the last."""
    pairs, frame = axis_pairs(window, rows), axis_frame(window)
    is_met = pairs.first < pairs.end
    positions = frame.positions(others(rows))
    cuts = np.arange(0, frame.positions(rows), tile)
    first = np.minimum.reduceat(np.where(is_met, pairs.first, positions), cuts, axis=-1)
    last = np.maximum.reduceat(np.where(is_met, pairs.end, 0), cuts, axis=-1)
    # Behind the end of a short group, or of keys that no query sees: one that is near.
    near = np.clip(cuts + _ahead(frame, rows), 0, positions - 1)
    is_empty = last == 0
    first, last = np.where(is_empty, near, first), np.where(is_empty, near + 1, last)
    return first.ravel(), last.ravel()


@functools.lru_cache(2048)
def axis_walk(window: AxisWindow, rows: Rows, tile: int, chunk: int, alignment: int) -> AxisWalk:
    """The walk along an axis.

    Args:
      window: the neighborhood along it, which is no whole circle.
      rows: whether tiles are of queries or of keys.
      tile: row positions of a tile.
      chunk: column positions of a chunk, a multiple of the alignment.
      alignment: chunks begin at multiples of it.
    """
    shift, starts, lengths = columns_needed(window, rows, tile, alignment)
    counts = -(-lengths // chunk)
    columns = round_up(shift + axis_frame(window).positions(others(rows)), alignment)
    columns = max(columns, int(counts.max()) * chunk)
    # So that the last chunk ends within the array, whose columns are then not copied.
    starts = np.minimum(starts, columns - counts * chunk)
    return AxisWalk(
        window=window,
        rows=rows,
        tile=tile,
        chunk=chunk,
        shift=shift,
        columns=columns,
        starts=tuple(map(int, starts)),
        counts=tuple(map(int, counts)),
    )


@functools.lru_cache(256)
def axis_masks(walk: AxisWalk) -> AxisMasks:
    """What the blocks along an axis look like."""
    shape = len(walk.counts), max(walk.counts)
    kind, is_whole = np.zeros(shape, np.int32), np.zeros(shape, bool)
    is_full = np.zeros(shape[0], bool)
    kinds: dict[bytes, int] = {}
    examples = []
    for tile, count in enumerate(walk.counts):
        seen, exists = _seen(walk, tile)
        is_full[tile] = exists.all()
        for i, block in enumerate(np.split(seen, count, axis=1)):
            key = np.packbits(block).tobytes()
            if key not in kinds:
                kinds[key] = len(examples)
                examples.append(block)
            kind[tile, i] = kinds[key]
            is_whole[tile, i] = block[exists].all()
    return AxisMasks(kind, is_whole, is_full, np.stack(examples))


def _seen(walk: AxisWalk, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a tile see which columns of its chunks, and which of the rows exist."""
    pairs = axis_pairs(walk.window, walk.rows)
    part, within = divmod(tile, walk.num_tiles)
    group, number = divmod(within, walk.per_group)
    rows = slice(number * walk.tile, (number + 1) * walk.tile)
    first, end, exists = (
        _filled(x[rows], walk.tile)
        for x in (
            pairs.first[part, group],
            pairs.end[part, group],
            walk.frame.exists(walk.rows)[group],
        )
    )
    begin = walk.column_of(tile, 0) - walk.shift
    column = begin + np.arange(walk.counts[tile] * walk.chunk)
    return (first[:, None] <= column) & (column < end[:, None]), exists


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """With zeros at the end."""
    return np.pad(x, (0, size - len(x)))
