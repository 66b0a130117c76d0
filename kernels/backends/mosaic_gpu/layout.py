"""How tokens lie in the arrays of a kernel, and what a plan says of them.

A *line* is a run of tokens of one dilation group along the last axis. The unit for tensor copies
takes lines, or boxes of them, out of an array ``[lines, places, channels]``: dilation groups of the
last axis stand side by side in the channels, and those of the others are lines of their own. That
is a view of the tokens as they are given where the dilation divides every axis, and 8 the places of
a line, as Mosaic wants it; otherwise zeros are added at the end of axes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from natjax.kernels.backends.mosaic_gpu.config import SWIZZLED_ROWS, pieces_of
from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import AxisBlocks, Blocks, axis_blocks, columns_met
from natjax.kernels.plan.reach import axis_reach


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tokens along three axes, those of fewer with axes of one token in front.

    Attributes:
      blocks: tiles, slabs and chunks along each axis.
      given: how many axes there are in fact.
    """

    blocks: Blocks
    given: int

    @classmethod
    def of(cls, blocks: Blocks) -> Layout:
        """The layout of tokens that are cut into blocks."""
        given = blocks.axes
        alone = axis_blocks(AxisWindow(length=1, kernel_size=1), given[0].rows, 1, 1)
        return cls(Blocks((alone,) * (3 - len(given)) + given), len(given))

    @property
    def windows(self) -> list[AxisWindow]:
        """The neighborhood along each axis."""
        return [axis.window for axis in self.blocks.axes]

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation groups along each axis."""
        return tuple(w.dilation for w in self.windows)

    @property
    def tile(self) -> tuple[int, ...]:
        """Rows of a block along each axis."""
        return tuple(axis.tile for axis in self.blocks.axes)

    @property
    def chunk(self) -> tuple[int, ...]:
        """Columns of a block along each axis."""
        return tuple(axis.chunk for axis in self.blocks.axes)

    @property
    def places(self) -> tuple[int, ...]:
        """Positions of a dilation group in an array of lines along each axis."""
        *places, last = (w.max_group_length for w in self.windows)
        return *places, -(-last // SWIZZLED_ROWS) * SWIZZLED_ROWS

    def chunks_fit(self, axis: int) -> bool:
        """Whether all chunks of all slabs end inside an axis."""
        blocks = self.blocks.axes[axis]
        return blocks.num_chunks * blocks.chunk <= self.places[axis]

    def lines(self, x: Float[Array, "B T N D"]) -> Float[Array, "lines places channels"]:
        """Tokens as lines."""
        x = self._padded(x.reshape(x.shape[0], *self._lengths, -1), self.places)
        return x.reshape(-1, self.places[2], self.dilation[2] * x.shape[-1])

    def tokens(
        self, x: Float[Array, "lines places channels"], heads: int
    ) -> Float[Array, "B T N D"]:
        """Inverse of `lines`."""
        full = (p * d for p, d in zip(self.places, self.dilation, strict=True))
        width = x.shape[2] // (heads * self.dilation[2])
        x = x.reshape(-1, *full, heads, width)
        x = x[:, *(slice(n) for n in self._lengths)]
        return x.reshape(x.shape[0], -1, heads, width)

    def scalars(self, x: Num[Array, "B T N"]) -> Num[Array, "rows frames lines places"]:
        """A number of each token and head, those of one head and dilation group together."""
        batch, _, heads = x.shape
        x = self._padded(x.reshape(batch, *self._lengths, heads), self.places)
        apart = (n for axis in zip(self.places, self.dilation, strict=True) for n in axis)
        x = x.reshape(batch, *apart, heads).transpose(0, 2, 4, 6, 7, 1, 3, 5)
        return x.reshape(-1, *self.places)

    def by_tile(self, x: Num[Array, "B T N"]) -> Num[Array, "B N tiles rows"]:
        """A number of each token and head, in the order of the rows of all tiles."""
        batch, _, heads = x.shape
        covered = [axis.per_group * axis.tile for axis in self.blocks.axes]
        x = self._padded(x.reshape(batch, *self._lengths, heads), covered)
        x = x.reshape(batch, *self._tiled, heads)
        # Of each axis: tiles of a group, rows of a tile, groups.
        x = x.transpose(0, 10, 3, 1, 6, 4, 9, 7, 2, 5, 8)
        return x.reshape(batch, heads, self.blocks.num_tiles, self.blocks.num_rows)

    def of_tiles(self, x: Float[Array, "B N tiles rows"]) -> Float[Array, "B T N"]:
        """Inverse of `by_tile`."""
        batch, heads = x.shape[:2]
        grid = self._tiled
        x = x.reshape(batch, heads, *(grid[i] for i in (2, 0, 5, 3, 8, 6)), *grid[1::3])
        x = x.transpose(0, 3, 8, 2, 5, 9, 4, 7, 10, 6, 1)
        full = (math.prod(grid[3 * i : 3 * i + 3]) for i in range(3))
        x = x.reshape(batch, *full, heads)[:, *(slice(n) for n in self._lengths)]
        return x.reshape(batch, -1, heads)

    def row_windows(self) -> Int[Array, "tiles axes 2 rows"]:
        """The column positions that each row meets along each axis: first, and past the last."""
        spread = []
        for i, axis in enumerate(self.blocks.axes):
            # [2, tiles, rows] of the axis, broadcast along the tiles and rows of the others.
            one = np.moveaxis(_windows_of_axis(axis), 2, 0)
            shape = [1] * 7
            shape[0], shape[1 + i], shape[4 + i] = one.shape
            full = (2, *(a.num_tiles for a in self.blocks.axes), *self.tile)
            x = jnp.broadcast_to(jnp.asarray(one.reshape(shape)), full)
            spread.append(x.reshape(2, self.blocks.num_tiles, self.blocks.num_rows))
        return jnp.stack(spread).transpose(2, 0, 1, 3)

    def whole_windows(self) -> Int[np.ndarray, "tiles axes 2"]:
        """The column positions that all rows of a tile meet: first, and past the last."""
        along = [_common_window(axis) for axis in self.blocks.axes]
        grids = np.meshgrid(*(np.arange(len(x)) for x in along), indexing="ij")
        return np.stack([x[g.ravel()] for x, g in zip(along, grids, strict=True)], axis=1)

    @property
    def split_axis(self) -> int:
        """The axis along which the rows of two warpgroups are apart; the first for one."""
        pieces = pieces_of(self.blocks)
        return pieces.index(max(pieces))

    def reach_of_halves(self) -> Int[np.ndarray, "tiles 2 2"]:
        """For either half of a tile, its first chunk along the split axis, and how many it meets.

        A half that meets none has the first of its tile.
        """
        axis = self.split_axis
        blocks = self.blocks.axes[axis]
        halves = axis_reach(blocks, 2).reshape(-1, 2, 2).copy()
        of_tile = axis_reach(blocks)[:, None, 0]
        halves[..., 0] = np.where(halves[..., 1] > 0, halves[..., 0], of_tile)
        grid = np.indices([a.num_tiles for a in self.blocks.axes])
        return halves[grid[axis].ravel()]

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(w.length for w in self.windows)

    @property
    def _tiled(self) -> tuple[int, ...]:
        """Of each axis: tiles of a dilation group, rows of a tile, groups."""
        sizes = ((a.per_group, a.tile, a.window.dilation) for a in self.blocks.axes)
        return tuple(n for axis in sizes for n in axis)

    def _padded(self, x: Array, places: tuple[int, ...] | list[int]) -> Array:
        """Zeros at the end of axes, so that each dilation group has so many places."""
        missing = [
            (0, p * w.dilation - w.length) for p, w in zip(places, self.windows, strict=True)
        ]
        if not any(after for _, after in missing):
            return x
        return jnp.pad(x, [(0, 0), *missing, *[(0, 0)] * (x.ndim - 4)])


@functools.lru_cache(256)
def _windows_of_axis(axis: AxisBlocks) -> Int[np.ndarray, "tiles rows 2"]:
    """The columns that each row of each tile meets; none where there is no such row."""
    windows = np.zeros((axis.num_tiles, axis.tile, 2), np.int32)
    for group in range(axis.window.dilation):
        low, high = columns_met(axis.window, axis.rows, group)
        rows = np.zeros((axis.per_group * axis.tile, 2), np.int32)
        rows[: len(low)] = np.stack([low, high], axis=1)
        tiles = slice(group * axis.per_group, (group + 1) * axis.per_group)
        windows[tiles] = rows.reshape(axis.per_group, axis.tile, 2)
    return windows


@functools.lru_cache(256)
def _common_window(axis: AxisBlocks) -> Int[np.ndarray, "tiles 2"]:
    """The columns that all rows of a tile meet; none for a tile without rows."""
    windows = _windows_of_axis(axis)
    group, first, _ = axis.locate(np.arange(axis.num_tiles))
    length = axis.window.group_length(group)
    exists = (first[:, None] + np.arange(axis.tile)) < length[:, None]
    low = np.where(exists, windows[..., 0], -1).max(axis=1)
    high = np.where(exists, windows[..., 1], axis.window.max_group_length + 1).min(axis=1)
    return np.stack([low, np.where(exists.any(axis=1), high, -1)], axis=1).astype(np.int32)
