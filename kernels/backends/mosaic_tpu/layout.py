"""How a map of tokens lies in the memory of a TPU core, and the tiles that a kernel works on.

Vectors have 8 sublanes by 128 lanes. The lanes are the channels of as many heads as fit, so that
products have full width; the sublanes are tokens along the last axis. A tile of queries has as many
rows as make its logits, which lie transposed (keys by heads and queries), 128 lanes wide.

Keys and values are copied into scratch memory with `AxisTiles.shift` columns in front, so that
every slab of keys starts at a multiple of 8 there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import cast

import numpy as np
from jaxtyping import Int

from natjax.kernels.backends.mosaic_tpu.tiles import AxisTiles, axis_tiles, round_up
from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.plan.blocks import Blocks, Rows
from natjax.kernels.plan.frame import axis_frame
from natjax.kernels.plan.pattern import pattern_of

LANES = 128
SUBLANES = 8
# Rows of 128 keys that cost as much as a tile costs besides its logits; an estimate.
_TILE_OVERHEAD = 5


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tiles of a neighborhood, and the heads that a kernel works on at once.

    Attributes:
      blocks: tiles and slabs along each axis, of which there are two at least.
      heads: heads that share the lanes.
      head_dim: channels of a head, a power of two.
      rows: positions of queries along the first axis in a strip, a multiple of the tile; None where
        images are not cut into strips.
    """

    blocks: Blocks
    heads: int
    head_dim: int
    rows: int | None = None

    @classmethod
    def of(cls, neighborhood: Neighborhood, heads: int, head_dim: int) -> Layout:
        """The layout with the least work.

        Args:
          neighborhood: which keys a query sees.
          heads: heads in all.
          head_dim: channels of a head, a power of two up to 128.
        """
        packed = min(LANES // head_dim, heads)
        return cls(_best_blocks(at_least_2d(neighborhood), LANES // packed), packed, head_dim)

    @property
    def windows(self) -> tuple[AxisWindow, ...]:
        """The neighborhood along each axis."""
        return tuple(axis.window for axis in self.blocks.axes)

    @property
    def axes(self) -> tuple[AxisTiles, ...]:
        """Tiles and slabs along each axis."""
        return cast("tuple[AxisTiles, ...]", self.blocks.axes)

    @property
    def columns(self) -> AxisTiles:
        """Tiles and slabs along the last axis."""
        return self.axes[-1]

    @property
    def lanes(self) -> int:
        """Channels of the heads together."""
        return self.heads * self.head_dim

    @property
    def queries(self) -> int:
        """Queries of a tile."""
        return self.blocks.num_rows

    @property
    def keys(self) -> int:
        """Keys of a slab."""
        return self.blocks.num_columns

    @property
    def logit_lanes(self) -> int:
        """Heads times queries of a tile."""
        return self.heads * self.queries

    @property
    def padding(self) -> tuple[int, ...]:
        """Tokens along each axis that are put before the keys at hand."""
        return tuple(axis.frame.padding for axis in self.axes)

    def tokens(self, of: Rows) -> tuple[int, ...]:
        """Tokens at hand along each axis, of the whole; of keys with what is put before them."""
        return tuple(axis.tokens(of) for axis in self.axes)

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation along each axis."""
        return tuple(w.dilation for w in self.windows)

    @property
    def groups(self) -> int:
        """Dilation groups."""
        return math.prod(self.dilation)

    @property
    def work(self) -> float:
        """What all tiles of a part cost, in vectors of 8 by 128 logits."""
        return _work(self.blocks) / SUBLANES / math.prod(axis.num_parts for axis in self.axes)

    @property
    def num_strips(self) -> int:
        """Strips of an image."""
        return 1 if self.rows is None else -(-self.axes[0].positions("queries") // self.rows)

    @functools.cached_property
    def strip_offset(self) -> int:
        """From a strip's first query to its first key along the first axis, in positions."""
        return 0 if self.rows is None else int(self._slabs.min())

    @functools.cached_property
    def keys_of_strip(self) -> int:
        """Positions of a strip's keys along the first axis."""
        if self.rows is None:
            return self.axes[0].positions("keys")
        return int(self._slabs.max()) + self.blocks.axes[0].halo - self.strip_offset

    def positions(self, of: Rows) -> tuple[int, ...]:
        """Positions of the longest dilation group along each axis, in a strip."""
        first, *rest = (axis.positions(of) for axis in self.axes)
        if self.rows is not None:
            first = self.rows if of == "queries" else self.keys_of_strip
        return first, *rest

    def tokens_of_strip(self, of: Rows) -> tuple[int, ...]:
        """Tokens along each axis of a strip, or of an image that is not cut."""
        if self.rows is None:
            return self.tokens(of)
        return self.positions(of)[0] * self.dilation[0], *self.tokens(of)[1:]

    @property
    def tiled(self) -> tuple[int, ...]:
        """Positions along each axis that tiles cover: up to a tile more than there are."""
        axes = zip(self.tiles_along, self.blocks.axes, strict=True)
        return tuple(n * axis.tile for n, axis in axes)

    @property
    def tiles_along(self) -> tuple[int, ...]:
        """Tiles of a dilation group along each axis, in a strip."""
        first, *rest = self.blocks.axes
        count = first.per_group if self.rows is None else self.rows // first.tile
        return count, *(axis.per_group for axis in rest)

    @property
    def tiles_of_group(self) -> int:
        """Tiles of a dilation group, in a strip."""
        return math.prod(self.tiles_along)

    @property
    def num_tiles(self) -> int:
        """Tiles of a strip."""
        return self.groups * self.tiles_of_group

    @property
    def copy(self) -> tuple[int, ...]:
        """Positions and columns of the copy of a map of keys."""
        return (*self.positions("keys")[:-1], self.columns.columns)

    def plan(self) -> Int[np.ndarray, "*parts F"]:
        """Of every tile: its kind, its first position and the start of its slab along each axis.

        One dilation group comes after the other, and one strip. Kernels look up here what would
        take the scalar unit many divisions (`program.Program.locate`). There is a plan for each
        part of the axes that may be at hand.
        """
        parts = tuple(axis.num_parts for axis in self.axes)
        plans = [
            self._plan_of(part, strip)
            for part in np.ndindex(parts)
            for strip in range(self.num_strips)
        ]
        return np.stack(plans).reshape(*parts, -1)

    def _plan_of(self, part: tuple[int, ...], strip: int) -> Int[np.ndarray, "F"]:
        axes = self.axes
        groups = np.indices(self.dilation).reshape(len(axes), -1, 1)
        groups = groups + np.reshape(part, (-1, 1, 1)) * np.reshape(self.dilation, (-1, 1, 1))
        index = np.indices(self.tiles_along).reshape(len(axes), 1, -1)
        first = [i * axis.tile for axis, i in zip(axes, index, strict=True)]
        index[0] = np.minimum(index[0] + strip * self.tiles_along[0], axes[0].per_group - 1)
        tiles = [g * axis.per_group + i for axis, g, i in zip(axes, groups, index, strict=True)]
        counts = [axis.num_tiles for axis in axes]
        kind = pattern_of(self.blocks).kind[np.ravel_multi_index(tiles, counts)]
        starts = [axis.locate(tile)[2] for axis, tile in zip(axes, tiles, strict=True)]
        if self.rows is not None:
            starts[0] = starts[0] - strip * self.rows - self.strip_offset
        starts[-1] = starts[-1] + self.columns.shift
        fields = np.broadcast_arrays(kind, *first, *starts)
        return np.stack(fields, axis=-1).reshape(-1).astype(np.int32)

    @property
    def _slabs(self) -> Int[np.ndarray, "groups strips tiles"]:
        """Where slabs along the first axis start, from the first query of their strip."""
        axis, tiles = self.axes[0], self.tiles_along[0]
        strips = np.arange(self.num_strips)[:, None]
        # The last tile stands for those that fill up the last strip.
        index = np.minimum(strips * tiles + np.arange(tiles), axis.per_group - 1)
        groups = np.arange(axis.window.dilation * axis.num_parts)[:, None, None]
        starts = axis.locate(groups * axis.per_group + index)[2]
        return starts - strips * tiles * axis.tile


def at_least_2d(neighborhood: Neighborhood) -> Neighborhood:
    """With an axis of one token in front of a single one."""
    if len(neighborhood.axes) > 1:
        return neighborhood
    return Neighborhood((AxisWindow(length=1, kernel_size=1), *neighborhood.axes))


@functools.lru_cache(256)
def _best_blocks(neighborhood: Neighborhood, most: int) -> Blocks:
    """The blocks, of up to ``most`` queries a tile, with the fewest logits."""
    *leading, last = (axis_frame(window).query_positions for window in neighborhood.axes)
    sides = [range(1, min(most, length) + 1) for length in leading]
    widths = range(SUBLANES, min(most, round_up(last, SUBLANES)) + 1, SUBLANES)
    choices = itertools.product(*sides, widths)
    fitting = (tile for tile in choices if math.prod(tile) <= most)
    return min((_blocks(neighborhood, tile) for tile in fitting), key=_work)


def _blocks(neighborhood: Neighborhood, tile: tuple[int, ...]) -> Blocks:
    alignment = (1,) * (len(tile) - 1) + (SUBLANES,)
    return Blocks(tuple(map(axis_tiles, neighborhood.axes, tile, alignment)))


def _work(blocks: Blocks) -> int:
    return blocks.num_tiles * (blocks.num_columns + _TILE_OVERHEAD * SUBLANES)
