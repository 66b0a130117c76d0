"""Tiles of queries along one axis, and the slab of keys that each needs.

An axis may have a part of its tokens at hand, and several `origins`, as where tokens are split over
devices: what is at hand is then one of several parts. Tiles of all parts are numbered, one part
after the other, so that one table holds what any of them looks like.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import AxisBlocks, Rows
from natjax.kernels.plan.frame import AxisFrame, axis_frame


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not less."""
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisTiles(AxisBlocks):
    """Blocks along an axis, whose slabs start where each tile needs them.

    What other blocks call a dilation group is here one of a part: there are as many of them as
    parts times dilation groups.

    Attributes:
      alignment: slabs start at multiples of it, in a copy of the keys.
      shift: columns of the copy in front of the first position.
      starts: column of the copy at which the slab of each tile starts.
    """

    alignment: int
    shift: int
    starts: tuple[int, ...]

    @property
    def frame(self) -> AxisFrame:
        """Where windows are in the arrays at hand."""
        return axis_frame(self.window)

    @property
    def num_parts(self) -> int:
        """Parts of the axis that may be at hand."""
        return len(self.window.origins)

    @property
    def per_group(self) -> int:
        """Tiles in a dilation group."""
        return -(-self.frame.query_positions // self.tile)

    @property
    def num_tiles(self) -> int:
        """Tiles in all."""
        return len(self.starts)

    def positions(self, of: Rows) -> int:
        """Positions of the longest dilation group at hand."""
        return self.frame.positions(of)

    def tokens(self, of: Rows) -> int:
        """Tokens at hand; of keys with what is put before them."""
        return sum(self.frame.tokens(of))

    @property
    def columns(self) -> int:
        """Columns of the copy."""
        copied = self.shift + self.frame.key_positions
        return round_up(max(copied, max(self.starts) + self.halo), self.alignment)

    def locate(self, tile: Any) -> tuple[Any, Any, Any]:
        """Dilation group, first row position and first column position of tiles (NumPy)."""
        group, first = tile // self.per_group, tile % self.per_group * self.tile
        return group, first, np.asarray(self.starts)[tile] - self.shift

    def is_neighbor(self, row: Any, column: Any, group: Any) -> Any:
        """Whether a query sees a key of the same group, by positions (NumPy)."""
        frame = self.frame
        part, group = np.divmod(group, self.window.dilation)
        exists = row * self.window.dilation + group < self.window.num_queries
        row = np.minimum(row, frame.query_positions - 1)
        start, end = frame.start[part, group, row], frame.end[part, group, row]
        return exists & (start <= column) & (column < end)

    def distance(self, row: Any, column: Any) -> Any:
        """Index into the biases of the axis: key less query, from 0 up."""
        return column - row - self.frame.ahead + self.window.kernel_size - 1


@functools.lru_cache(1024)
def axis_tiles(window: AxisWindow, tile: int, alignment: int) -> AxisTiles:
    """Tiles along an axis, with the shift that makes slabs shortest.

    Args:
      window: the neighborhood along it, one query a key token.
      tile: positions of a tile.
      alignment: slabs start at multiples of it.
    """
    first, last = _needed(window, tile)
    positions = axis_frame(window).key_positions
    best: tuple[int, int, np.ndarray] | None = None
    for shift in range(alignment if positions > alignment else 1):
        starts = (first + shift) // alignment * alignment
        halo = round_up(int((last + shift - starts).max()), alignment)
        if best is None or halo < best[0]:
            best = halo, shift, starts
    assert best is not None
    halo, shift, starts = best
    if alignment == 1:
        starts = np.minimum(starts, positions - halo)
    return AxisTiles(
        window=window,
        rows="queries",
        tile=tile,
        chunk=halo,
        offset=0,
        halo=halo,
        alignment=alignment,
        shift=shift,
        starts=tuple(map(int, starts)),
    )


def _needed(
    window: AxisWindow, tile: int
) -> tuple[Int[np.ndarray, "tiles"], Int[np.ndarray, "tiles"]]:
    """The first key position that each tile sees, and one past the last."""
    frame = axis_frame(window)
    exists = np.broadcast_to(frame.exists("queries"), frame.start.shape)
    far = frame.key_positions
    cuts = np.arange(0, frame.query_positions, tile)
    first = np.minimum.reduceat(np.where(exists, frame.start, far), cuts, axis=-1)
    last = np.maximum.reduceat(np.where(exists, frame.end, 0), cuts, axis=-1)
    # A tile behind the end of a short group has no queries.
    is_empty = last == 0
    return np.where(is_empty, 0, first).ravel(), np.where(is_empty, 1, last).ravel()
