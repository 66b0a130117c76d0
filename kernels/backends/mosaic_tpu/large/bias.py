"""Biases of large windows: tables of what is added to the logits of a tile and a chunk.

A bias depends on how far a column is from a row, along each axis. For each distance along all axes
but the last, a table has what is added to whole vectors of logits: those of a tile's rows and a
chunk's columns along the last axis, which depend only on how far the chunk is from the tile, its
*kind*. So no number has to move from one lane to another. Where chunks are narrower than the lanes,
a vector has several positions of the axis before the last.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from natjax.kernels.backends.mosaic_tpu.large.axis import AxisWalk
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES, round_up
from natjax.kernels.sharding.partitioning import align_varying


@dataclasses.dataclass(frozen=True)
class BiasWalk:
    """The table of biases for a walk, ``[heads, kinds, *entries, width, lanes]``.

    A step meets a box of entries, its *block*. An entry is a distance of a column from a row.

    Attributes:
      axes: of the walk.
      field: number of the field of a step that says the kind.
    """

    axes: tuple[AxisWalk, ...]
    field: int

    @property
    def stacked(self) -> int:
        """Positions of the axis before the last in the lanes of an entry."""
        return int(stacked(self.axes[-1].chunk))

    @property
    def lanes(self) -> int:
        """Columns of an entry."""
        return self.stacked * self.axes[-1].chunk

    @property
    def width(self) -> int:
        """Rows of an entry."""
        return self.axes[-1].tile

    @property
    def block(self) -> tuple[int, ...]:
        """Entries that a step meets along each axis but the last."""
        return tuple(map(int, block_of(*self._sides())))

    @functools.cached_property
    def kinds(self) -> Int[np.ndarray, "kinds"]:
        """How far the first column of a chunk is from the first row of its tile, along the last."""
        return self.axes[-1].distances

    def kind_of(self, tile: Any, column: Any) -> Any:
        """The kind of a chunk, by its tile and its column as `start` takes them (NumPy)."""
        return np.searchsorted(self.kinds, self.axes[-1].distance(tile, column))

    @functools.cached_property
    def _firsts(self) -> tuple[int, ...]:
        """The distance that the first entry along each axis but the last stands for."""
        return tuple(int(axis.distances[0]) - (axis.tile - 1) for axis in self.axes[:-1])

    @functools.cached_property
    def entries(self) -> tuple[int, ...]:
        """Entries along each axis but the last."""
        sizes = zip(self.axes[:-1], self.block, strict=True)
        return tuple(int(np.ptp(axis.distances)) + block for axis, block in sizes)

    def size(self, heads: int) -> int:
        """Numbers of the table of so many heads, in memory."""
        width = round_up(self.width, SUBLANES)
        return heads * len(self.kinds) * math.prod(self.entries) * width * self.lanes

    def block_size(self, heads: int) -> int:
        """Numbers of a block for so many heads, in memory."""
        tile, chunk = self._sides()
        return heads * int(block_size_of(tile, chunk))

    def _sides(self) -> tuple[list[int], list[int]]:
        return [axis.tile for axis in self.axes], [axis.chunk for axis in self.axes]

    def start(self, i: int, tile: Any, column: Any) -> Any:
        """The first entry of a step along an axis.

        Args:
          i: number of the axis, not the last.
          tile: number of the tile along it, in its dilation group.
          column: column of the array at which the chunk begins (`AxisWalk.column_of`).
        """
        axis = self.axes[i]
        return axis.distance(tile, column) - (axis.tile - 1 + self._firsts[i])

    def entry(self, line: Sequence[int], column: int) -> tuple[int, ...]:
        """Where a block has the biases of 128 columns for the rows of a line of the tile.

        Args:
          line: the place of the rows in the tile along each axis but the last.
          column: the first of the columns, by number in the chunk.

        Returns:
          The entry in the block along each axis but the last, and the first lane.
        """
        chunk = [axis.chunk for axis in self.axes]
        column, lane = column // self.lanes * self.lanes, column % self.lanes
        places = np.unravel_index(column, chunk)[:-1]
        leading = zip(self.axes[:-1], places, line, strict=True)
        return *(int(place) - row + axis.tile - 1 for axis, place, row in leading), lane

    def table(
        self, rpb: Float[Array, "N R"], factor: float
    ) -> Float[Array, "N kinds *entries width lanes"]:
        """The biases of each head, times a factor; 0 at distances that nobody sees."""
        sizes = [2 * axis.window.kernel_size - 1 for axis in self.axes]
        x = factor * rpb.astype(jnp.float32).reshape(-1, *sizes)
        if self.axes[0].rows == "keys":
            x = jnp.flip(x, axis=range(1, x.ndim))
        for i, (axis, first, size) in enumerate(
            zip(self.axes[:-1], self._firsts, self.entries, strict=True), start=1
        ):
            more = self.stacked - 1 if i == len(self.axes) - 1 else 0
            x = _from(x, i, first + axis.window.kernel_size - 1, size + more)
        # As a product, whose transpose is another, and no gather, whose transpose would scatter.
        x = jnp.einsum("n...r,kwcr->nk...wc", x, self._one_hot(), precision="highest")
        size, axis = self.entries[-1], len(self.axes)
        parts = [jax.lax.slice_in_dim(x, j, j + size, axis=axis) for j in range(self.stacked)]
        x = jnp.stack(parts, axis=-2)
        return x.reshape(*x.shape[:-2], self.lanes)

    def _one_hot(self) -> Float[Array, "kinds width columns R"]:
        """Which bias along the last axis belongs to a row and a column."""
        axis = self.axes[-1]
        row, column = np.arange(axis.tile)[:, None], np.arange(axis.chunk)
        distance = self.kinds[:, None, None] + column - row
        size = 2 * axis.window.kernel_size - 1
        return jax.nn.one_hot(distance + axis.window.kernel_size - 1, size, dtype=jnp.float32)

    def gradient(self, table: Float[Array, "N kinds *entries width lanes"]) -> Float[Array, "N R"]:
        """The transpose of `table` with a factor of 1."""
        count = math.prod(2 * axis.window.kernel_size - 1 for axis in self.axes)
        # Of the same type as the table, of which devices may have different ones.
        zeros, _ = align_varying(jnp.zeros((table.shape[0], count)), table)
        (gradient,) = jax.vjp(lambda x: self.table(x, 1.0), zeros)[1](table)
        return gradient


def stacked(chunk: Any) -> Any:
    """Positions of the axis before the last in 128 lanes, if chunks are so wide along the last."""
    return np.maximum(1, LANES // chunk)


def suits(chunk: Sequence[Any]) -> Any:
    """Whether chunks with these sides (numbers or arrays) fill whole vectors by whole lines."""
    *_, before, last = chunk
    return ((last % LANES == 0) | (LANES % last == 0)) & (before % stacked(last) == 0)


def block_of(tile: Sequence[int], chunk: Sequence[Any]) -> list[Any]:
    """Entries that a step meets along each axis but the last (numbers or arrays)."""
    sides = [c + t - 1 for c, t in zip(chunk[:-1], tile[:-1], strict=True)]
    sides[-1] = sides[-1] - (stacked(chunk[-1]) - 1)
    return sides


def block_size_of(tile: Sequence[int], chunk: Sequence[Any]) -> Any:
    """Numbers of a block for one head, in memory (numbers or arrays)."""
    entries = functools.reduce(np.multiply, block_of(tile, chunk))
    return entries * round_up(tile[-1], SUBLANES) * stacked(chunk[-1]) * chunk[-1]


def _from(x: Array, axis: int, first: int, size: int) -> Array:
    """So many entries along an axis from a first one on; zeros where there are none."""
    last = first + size
    x = jax.lax.slice_in_dim(x, max(0, first), min(x.shape[axis], last), axis=axis)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (max(0, -first), size - x.shape[axis] - max(0, -first))
    return jnp.pad(x, widths)
