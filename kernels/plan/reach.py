"""Which chunks of its slab each tile meets.

Slabs have the length of the longest, which is that of tiles at a border, or next to one; most tiles
meet fewer chunks, and need not walk over the others.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int

from natjax.kernels.plan.blocks import AxisBlocks, Blocks, columns_met

# The share of a slab's chunks below which skipping the others pays.
_WORTHWHILE = 0.85


@functools.lru_cache(256)
def axis_reach(blocks: AxisBlocks) -> Int[np.ndarray, "tiles 2"]:
    """For each tile along an axis, the first chunk that it meets and how many there are from there.

    A tile without rows, behind the end of a short dilation group, meets none.
    """
    group, first, start = blocks.locate(np.arange(blocks.num_tiles))
    reach = np.zeros((blocks.num_tiles, 2), np.int32)
    # Dilation groups come in two lengths at most, the first being the longest.
    for example in {0, blocks.window.dilation - 1}:
        low, high = columns_met(blocks.window, blocks.rows, example)
        is_met = high > low
        low, high = np.where(is_met, low, len(low)), np.where(is_met, high, 0)
        alike = blocks.window.group_length(group) == len(low)
        for tile in np.flatnonzero(alike & (first < len(low))):
            rows = slice(first[tile], first[tile] + blocks.tile)
            begin = (low[rows].min() - start[tile]) // blocks.chunk
            end = -(-(high[rows].max() - start[tile]) // blocks.chunk)
            reach[tile] = (begin, end - begin) if end > begin else (0, 0)
    return reach


def reach_of(blocks: Blocks) -> Int[np.ndarray, "tiles axes 2"]:
    """For each tile and along each axis, the first chunk that it meets and how many there are."""
    grids = np.meshgrid(*(np.arange(axis.num_tiles) for axis in blocks.axes), indexing="ij")
    along = [axis_reach(axis)[grid.ravel()] for axis, grid in zip(blocks.axes, grids, strict=True)]
    return np.stack(along, axis=1)


def skipping_pays(blocks: Blocks) -> bool:
    """Whether kernels should skip the chunks of a slab that a tile does not meet.

    Finding those that it meets costs divisions in every round, so that there must be chunks to
    save: on an H100, loops that saved 2 % of their chunks got slower.
    """
    return num_blocks(blocks) < _WORTHWHILE * blocks.num_tiles * blocks.num_chunks


def num_blocks(blocks: Blocks) -> int:
    """How many blocks all tiles meet: what a kernel costs."""
    return int(np.prod([axis_reach(axis)[:, 1].sum() for axis in blocks.axes], dtype=np.int64))
