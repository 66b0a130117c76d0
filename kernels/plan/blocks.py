"""Cutting a neighborhood into the blocks that a kernel works on.

A program of a kernel owns a *tile* of rows, which are queries, or keys in the backward pass for
keys and values, and walks over the *slab* of columns (the others) that its rows can meet, one
*chunk* at a time. Tiles and chunks are boxes of positions of one dilation group. So a block of
logits is tile by chunk, and the number of blocks is what a kernel costs.

Slabs start at ``clip(tile start + offset, 0, positions - halo)`` (`natjax.kernels.plan.slabs`).
Everything here works on traced values, inside a kernel, and on NumPy arrays, in a plan; which
query sees which key is asked of `natjax.kernels.neighborhood` alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from natjax.kernels.neighborhood import AxisWindow, Neighborhood, window_end, window_start
from natjax.kernels.plan.slabs import fit_slabs

type Ints = Any
type Bools = Any
type Rows = Literal["queries", "keys"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisBlocks:
    """Tiles, slabs and chunks along one axis.

    Attributes:
      window: the neighborhood along the axis.
      rows: what the rows of a block are; its columns are the others.
      tile: row positions in a tile.
      chunk: column positions in a chunk.
      offset: from the start of a tile to that of its slab, away from the borders.
      halo: column positions in a slab, none of them outside the axis; the last of its chunks may
        end later.
    """

    window: AxisWindow
    rows: Rows
    tile: int
    chunk: int
    offset: int
    halo: int

    @property
    def per_group(self) -> int:
        """Tiles in a dilation group."""
        return -(-self.window.max_group_length // self.tile)

    @property
    def num_tiles(self) -> int:
        """Tiles in all, one dilation group after the other."""
        return self.per_group * self.window.dilation

    @property
    def num_chunks(self) -> int:
        """Chunks in a slab."""
        return -(-self.halo // self.chunk)

    def locate(self, tile: Ints) -> tuple[Ints, Ints, Ints]:
        """Dilation group, first row position and first column position of a tile."""
        group, first = tile // self.per_group, tile % self.per_group * self.tile
        xp = jnp if isinstance(tile, jax.Array) else np
        last = self.window.max_group_length - self.halo
        return group, first, xp.minimum(xp.maximum(first + self.offset, 0), last)

    def is_neighbor(self, row: Ints, column: Ints, group: Ints) -> Bools:
        """Whether a row position sees, or is seen by, a column position of the same group."""
        w = self.window
        query, key = (row, column) if self.rows == "queries" else (column, row)
        length = w.group_length(group)
        shape = {"kernel_size": w.kernel_size, "stride": w.stride, "is_causal": w.is_causal}
        start, end = window_start(query, length, **shape), window_end(query, length, **shape)
        return (start <= key) & (key < end) & (query < length)

    def slot(self, query: Ints, key: Ints, group: Ints) -> Ints:
        """Window slot of a key position in the window of a query position of the same group."""
        w = self.window
        shape = {"kernel_size": w.kernel_size, "stride": w.stride, "is_causal": w.is_causal}
        return key - window_start(query, w.group_length(group), **shape)

    def distance(self, row: Ints, column: Ints) -> Ints:
        """Index into the biases of the axis: key less query, from 0 up."""
        relative = column - row if self.rows == "queries" else row - column
        return relative + self.window.kernel_size - 1


@functools.cache
def axis_blocks(
    window: AxisWindow, rows: Rows, tile: int, chunk: int, whole_chunks: bool = False
) -> AxisBlocks:
    """Blocks along an axis, with the smallest slabs that hold what the rows meet.

    Raises:
      ValueError: only a part of the axis is at hand.
    """
    if window.queries is not None or window.keys is not None:
        raise ValueError(
            "blocks are those of a whole axis, so queries and keys of its window must be None; got "
            f"queries={window.queries} and keys={window.keys}"
        )
    positions = window.max_group_length
    starts = np.arange(0, positions, tile)
    first, last = np.full(len(starts), positions), np.zeros(len(starts), int)
    # Dilation groups come in two lengths at most, the first being the longest.
    for group in {0, window.dilation - 1}:
        low, high = columns_met(window, rows, group)
        cuts = starts[starts < len(low)]
        count = len(cuts)
        first[:count] = np.minimum(first[:count], np.minimum.reduceat(low, cuts))
        last[:count] = np.maximum(last[:count], np.maximum.reduceat(high, cuts))
    offset, halo = fit_slabs(first, last, tile, positions)
    if whole_chunks:
        # Still what the rows meet: a slab that starts earlier for it ends with the axis.
        halo = min(-(-halo // chunk) * chunk, positions)
    return AxisBlocks(window=window, rows=rows, tile=tile, chunk=chunk, offset=offset, halo=halo)


def columns_met(
    window: AxisWindow, rows: Rows, group: int
) -> tuple[Int[np.ndarray, "positions"], Int[np.ndarray, "positions"]]:
    """The columns that each row of a dilation group meets: first, and one past the last.

    A key that no query sees meets none: its first is not before its last.
    """
    return window.queries_of_keys(group) if rows == "keys" else window.keys_of_queries(group)


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles, slabs and chunks of a token layout; tiles and chunks are numbered row-major."""

    axes: tuple[AxisBlocks, ...]

    @classmethod
    def of(
        cls,
        neighborhood: Neighborhood,
        rows: Rows,
        tile: Sequence[int],
        chunk: Sequence[int],
        *,
        whole_chunks: bool = False,
    ) -> Blocks:
        """Blocks of a neighborhood.

        Args:
          neighborhood: the neighborhood, all of whose queries and keys are at hand.
          rows: what the rows of a block are.
          tile: row positions in a tile along each axis.
          chunk: column positions in a chunk along each axis.
          whole_chunks: whether slabs start early enough that all their chunks end inside the axis,
            as is needed where chunks are copied as boxes. It costs no block, and does nothing along
            an axis whose longest dilation group is shorter than the chunks of a slab together.

        Raises:
          ValueError: tiles and chunks have not one side for each axis of the neighborhood, or only
            a part of an axis is at hand.
        """
        if not len(tile) == len(chunk) == len(neighborhood.axes):
            raise ValueError(
                f"tile and chunk must have one side for each of {len(neighborhood.axes)} token "
                f"axes; got {tuple(tile)} and {tuple(chunk)}"
            )
        return cls(
            tuple(
                axis_blocks(window, rows, t, c, whole_chunks)
                for window, t, c in zip(neighborhood.axes, tile, chunk, strict=True)
            )
        )

    @property
    def num_tiles(self) -> int:
        """Tiles in all."""
        return math.prod(axis.num_tiles for axis in self.axes)

    @property
    def num_chunks(self) -> int:
        """Chunks in a slab."""
        return math.prod(axis.num_chunks for axis in self.axes)

    @property
    def num_rows(self) -> int:
        """Rows of a block."""
        return math.prod(axis.tile for axis in self.axes)

    @property
    def num_columns(self) -> int:
        """Columns of a block."""
        return math.prod(axis.chunk for axis in self.axes)

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return math.prod(axis.window.length for axis in self.axes)

    def tile_at(self, index: Ints) -> Tile:
        """The tile with a number."""
        return Tile(self, index, unravel(index, [axis.num_tiles for axis in self.axes]))


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of rows and its slab of columns.

    Attributes:
      blocks: what it is a tile of.
      number: its number among all tiles.
      index: its number along each axis.
    """

    blocks: Blocks
    number: Ints
    index: tuple[Ints, ...]

    @functools.cached_property
    def _located(self) -> list[tuple[Ints, Ints, Ints]]:
        axes = zip(self.blocks.axes, self.index, strict=True)
        return [axis.locate(index) for axis, index in axes]

    def rows(self) -> tuple[Ints, ...]:
        """Position of each row along each axis."""
        within = _unravel_lanes(
            jnp.arange(self.blocks.num_rows, dtype=jnp.int32),
            [axis.tile for axis in self.blocks.axes],
        )
        return tuple(first + i for (_, first, _), i in zip(self._located, within, strict=True))

    def columns(self, chunk: Ints) -> tuple[Ints, ...]:
        """Position of each column of a chunk along each axis."""
        axes = self.blocks.axes
        chunks = unravel(chunk, [axis.num_chunks for axis in axes])
        within = _unravel_lanes(
            jnp.arange(self.blocks.num_columns, dtype=jnp.int32), [axis.chunk for axis in axes]
        )
        return tuple(
            start + c * axis.chunk + i
            for (_, _, start), axis, c, i in zip(self._located, axes, chunks, within, strict=True)
        )

    def tokens(self, positions: tuple[Ints, ...]) -> tuple[Ints, Bools]:
        """Flat token index of positions in the tile's dilation group, and whether they exist."""
        token, exists = 0, True
        for axis, (group, _, _), position in zip(
            self.blocks.axes, self._located, positions, strict=True
        ):
            w = axis.window
            token = token * w.length + position * w.dilation + group
            exists = exists & (position < w.group_length(group))
        return token, exists

    def is_neighbor(self, rows: tuple[Ints, ...], columns: tuple[Ints, ...]) -> Bools:
        """Which rows and columns of a block see one another, ``[rows, columns]``."""
        seen = [
            axis.is_neighbor(row[:, None], column[None, :], group)
            for axis, (group, _, _), row, column in zip(
                self.blocks.axes, self._located, rows, columns, strict=True
            )
        ]
        return functools.reduce(jnp.logical_and, seen)

    def slot(self, rows: tuple[Ints, ...], columns: tuple[Ints, ...]) -> Ints:
        """Window slot of the key in the window of the query, for each pair of a block."""
        slot = 0
        for axis, (group, _, _), row, column in zip(
            self.blocks.axes, self._located, rows, columns, strict=True
        ):
            row, column = row[:, None], column[None, :]
            pair = (row, column) if axis.rows == "queries" else (column, row)
            slot = slot * axis.window.kernel_size + axis.slot(*pair, group)
        return slot


def unravel(index: Ints, sizes: Sequence[Ints]) -> tuple[Ints, ...]:
    """The index along each axis of a row-major number."""
    parts = []
    for size in reversed(sizes):
        parts.append(index % size)
        index = index // size
    return tuple(reversed(parts))


def _unravel_lanes(index: Ints, sizes: Sequence[int]) -> tuple[Ints, ...]:
    """As `unravel`; for powers of two by shifts, without a test of the sign on every lane."""
    if any(size & (size - 1) for size in sizes):
        return unravel(index, sizes)
    parts = []
    for size in reversed(sizes):
        parts.append(index & (size - 1))
        index = index >> (size.bit_length() - 1)
    return tuple(reversed(parts))
