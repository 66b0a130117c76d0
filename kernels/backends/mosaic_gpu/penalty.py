"""What is added to the logits of a block: bias and mask."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_gpu import copies, registers
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.program import (
    BLOCK,
    OF_ROWS,
    Chunk,
    Ints,
    Place,
    Program,
    Ref,
)
from natjax.kernels.plan.pattern import HIDDEN


@dataclasses.dataclass(frozen=True)
class Penalty:
    """What is added to the logits of a tile, in units of log2(e).

    With a table, that is a block of it. Without one, logits outside of the windows of their rows
    are hidden, in chunks that not every row sees whole.

    Attributes:
      program: what the kernel is compiled for.
      table: blocks, or the windows of rows (`Layout.row_windows`).
      kind: of each tile, or the windows of whole tiles (`Layout.whole_windows`).
      has_table: which of both.
      stored: shared memory that the blocks of the tile are in, if they are.
    """

    program: Program
    table: Ref
    kind: Ref
    has_table: bool
    stored: Ref = None

    def of_tile(self, place: Place) -> Any:
        """The kind of a tile, where there is a table."""
        return self.kind[place.tile] if self.has_table else None

    def exponents(
        self,
        products: jax.Array,
        tile: Any,
        place: Place,
        head: Ints,
        chunk: Chunk,
        warpgroup: Ints,
        *,
        select: bool = False,
    ) -> jax.Array:
        """The logits of a block of products.

        Args:
          products: of rows and columns.
          tile: what `of_tile` gave.
          place: the tile.
          head: whose blocks of the table.
          chunk: the chunk.
          warpgroup: whose rows.
          select: whether a hidden logit is hidden even where the product is nan.
        """
        logits = products * self.factor
        if self.has_table:
            added = self.block(tile, head, chunk.number, warpgroup)
            if select:
                return jnp.where(added > HIDDEN / 2, logits + added, HIDDEN)
            return logits + added
        return self.hide(logits, HIDDEN, place, chunk, warpgroup)

    def hide(
        self, x: jax.Array, hidden: float | int, place: Place, chunk: Chunk, warpgroup: Ints
    ) -> jax.Array:
        """A block, and ``hidden`` where row and column do not see one another; without a table."""
        return lax.cond(
            self._is_whole(place, chunk),
            lambda x: x,
            lambda x: jnp.where(self._seen(place, chunk, warpgroup), x, hidden),
            x,
        )

    def block(self, kind: Ints, head: Ints, chunk: Ints, warpgroup: Ints) -> jax.Array:
        """A block of the table, the rows of a warpgroup."""
        rows = pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)
        if self.stored is not None:
            return plgpu.load(self.stored.at[chunk, rows], layout=BLOCK)
        block = self.table.at[self._table_of(head), kind, chunk, rows]
        return plgpu.load(block, layout=BLOCK, optimized=False)

    def fetch(self, place: Place, head: Ints, barrier: Ref) -> None:
        """Copy the blocks of a tile into shared memory; see `copies.fetch_table`."""
        blocks = self.table.at[self._table_of(head), self.kind[place.tile]]
        copies.fetch_table(self.program, blocks, self.stored, barrier)

    def _table_of(self, head: Ints) -> Ints:
        return head if self.table.shape[0] > 1 else 0

    @property
    def factor(self) -> float:
        """On products of queries and keys."""
        return self.program.scale * LOG2_E

    @property
    def _axes(self) -> range:
        """Axes of more than one token in front."""
        return range(3 - self.program.layout.given, 3)

    def _windows(self, place: Place, warpgroup: Ints, axis: int) -> tuple[jax.Array, ...]:
        rows = pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)
        ends = (self.table.at[place.tile, axis, end, rows] for end in (0, 1))
        return tuple(plgpu.load(x, layout=OF_ROWS, optimized=False) for x in ends)

    def _is_whole(self, place: Place, chunk: Chunk) -> jax.Array:
        """Whether every row sees every column of a chunk."""
        conditions = []
        for axis in self._axes:
            start, side = chunk.start[axis], self.program.layout.chunk[axis]
            conditions.append(self.kind[place.tile, axis, 0] <= start)
            conditions.append(start + side <= self.kind[place.tile, axis, 1])
        return functools.reduce(jnp.logical_and, conditions)

    def _seen(self, place: Place, chunk: Chunk, warpgroup: Ints) -> jax.Array:
        """Which rows and columns of a block see one another.

        Columns are counted row-major in a chunk whose sides are powers of two, so that what lies
        beyond a column's place along an axis is shifted away. Places along all but the last axis
        are then the same for all columns that are a multiple of 8 apart or less, which the compiler
        sees, and compares once.
        """
        sides = self.program.layout.chunk
        shape = (GROUP_ROWS, self.program.columns)
        column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=BLOCK)
        conditions = []
        for axis in self._axes:
            beyond = math.prod(sides[axis + 1 :]).bit_length() - 1
            along = (column >> beyond) & (sides[axis] - 1)
            # Loaded for each chunk that needs a mask, which are few, and not kept in registers.
            low, high = (
                registers.across(end - chunk.start[axis], shape[1])
                for end in self._windows(place, warpgroup, axis)
            )
            conditions += [along >= low, along < high]
        return functools.reduce(jnp.logical_and, conditions)
