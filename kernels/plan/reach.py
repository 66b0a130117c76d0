"""Which chunks of its slab each tile meets.

Slabs have the length of the longest, which is that of tiles at a border, or next to one; most tiles
meet fewer chunks, and need not walk over the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from natjax.kernels.plan.blocks import AxisBlocks, Blocks, columns_met


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """What it costs a kernel to find the chunks that a tile meets.

    Attributes:
      per_tile: before the first chunk, in columns of a block.
      per_chunk: for each chunk, as a share of what it costs otherwise.
    """

    per_tile: float
    per_chunk: float

    def cost(self, met: Any, tiles: Any, columns: Any) -> Any:
        """What a kernel costs that finds the blocks it needs, in blocks; numbers or arrays.

        Args:
          met: how many blocks there are that tiles meet.
          tiles: how many tiles.
          columns: of a block.
        """
        return self.per_tile / columns * tiles + (1 + self.per_chunk) * met


# Numbers along the axes are counted from one round to the next, an addition and a comparison along
# each axis. A tile has to wait for the first of them, and its loop is not unrolled, which costs
# short ones most. Not measured.
BY_COUNTING = Lookup(per_tile=48.0, per_chunk=0.03)


@functools.lru_cache(4096)
def axis_reach(blocks: AxisBlocks, pieces: int = 1) -> Int[np.ndarray, "pieces 2"]:
    """For each tile along an axis, the first chunk that it meets and how many there are from there.

    A tile without rows, behind the end of a short dilation group, meets none.

    Args:
      blocks: along the axis.
      pieces: that the rows of each tile are cut into, of which each has an entry: pieces of equal
        length, those of a tile one after the other.
    """
    group, first, start = blocks.locate(np.arange(blocks.num_tiles))
    size = blocks.tile // pieces
    begins = first[:, None] + size * np.arange(pieces)
    reach = np.zeros((blocks.num_tiles, pieces, 2), np.int32)
    # Dilation groups come in two lengths at most, the first being the longest.
    for example in {0, blocks.window.dilation - 1}:
        low, high = columns_met(blocks.window, blocks.rows, example)
        length, is_met = len(low), high > low
        cuts = np.arange(0, length, size)
        low = np.minimum.reduceat(np.where(is_met, low, length), cuts)
        high = np.maximum.reduceat(np.where(is_met, high, 0), cuts)
        alike = (blocks.window.group_length(group) == length)[:, None] & (begins < length)
        piece = begins[alike] // size
        slab = np.broadcast_to(start[:, None], alike.shape)[alike]
        begin = (low[piece] - slab) // blocks.chunk
        count = -(-(high[piece] - slab) // blocks.chunk) - begin
        reach[alike] = np.where(count > 0, [begin, count], 0).T
    return reach.reshape(-1, 2)


def reach_of(blocks: Blocks) -> Int[np.ndarray, "tiles axes 2"]:
    """For each tile and along each axis, the first chunk that it meets and how many there are."""
    grids = np.meshgrid(*(np.arange(axis.num_tiles) for axis in blocks.axes), indexing="ij")
    along = [axis_reach(axis)[grid.ravel()] for axis, grid in zip(blocks.axes, grids, strict=True)]
    return np.stack(along, axis=1)


def skipping_pays(blocks: Blocks, lookup: Lookup = BY_COUNTING) -> bool:
    """Whether kernels should skip the chunks of a slab that a tile does not meet.

    Args:
      blocks: the blocks.
      lookup: what it costs to find the others.
    """
    tiles = blocks.num_tiles
    cost = lookup.cost(num_blocks(blocks), tiles, blocks.num_columns)
    return cost < tiles * blocks.num_chunks


def num_blocks(blocks: Blocks, pieces: Sequence[int] | None = None) -> int:
    """How many blocks all tiles meet: what a kernel costs that skips the others.

    Args:
      blocks: the blocks.
      pieces: that tiles are cut into along each axis; then it is how many blocks these meet, each
        of as many fewer rows.
    """
    cuts = pieces or (1,) * len(blocks.axes)
    along = (axis_reach(axis, n)[:, 1].sum() for axis, n in zip(blocks.axes, cuts, strict=True))
    return int(np.prod(list(along), dtype=np.int64))
