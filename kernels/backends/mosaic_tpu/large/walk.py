"""The walk of a kernel: tiles of rows, and for each the chunks of columns that it goes over.

Rows are queries and columns keys; or the other way round, for gradients of keys and values. Tiles
and chunks are boxes of positions of one dilation group. A step of the kernel's grid is one chunk of
one tile; chunks that no row of the tile meets are not in it. Where tokens are split over devices,
there is a list of steps for each part of them that a device may have, all as long as the longest.

The first axes of a block's mask and its last one are laid out apart, each for all columns of a
chunk: a row sees a column where the number of the last axis is less than those of all others. That
takes one comparison and one selection for a logit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from natjax.kernels.backends.mosaic_tpu.large.axis import (
    AxisWalk,
    axis_masks,
    axis_walk,
    columns_needed,
    others,
)
from natjax.kernels.backends.mosaic_tpu.large.bias import BiasWalk, block_size_of, suits
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES, at_least_2d, round_up
from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.plan.blocks import Rows
from natjax.kernels.plan.frame import axis_frame

# Seen or hidden along the last axis, and along any other.
_LAST = (1.0, 3.0)
_OTHER = (2.0, 0.0)
# Rows of a tile and columns of a chunk, at most, and the logits of a block.
_ROWS = 512
_COLUMNS = 3072
_LOGITS = 2**20
# What a step costs besides its logits, and 8 rows and 128 columns of it: in vectors of 8 by 128
# logits. Fitted to the bundles of the three kernels together, compiled for a v5e with tiles and
# chunks of many sizes: `python -m benchmarks.aot.tpu.walks`.
_STEP = 84
_OF_ROWS = 0.1
_OF_COLUMNS = 0.4
# Bytes that arrive in the time of a vector of logits: 5.6 bundles, in the mean of the kernels.
_BYTES = 3000
# Sides of a tile along the last axis, and along any other.
_WIDTHS = (8, 16, 24, 32, 48, 64, 128, 256, 512)
_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
# What a step is: the first or the last of its tile, and with or without a mask. It is nothing of
# that where it is there only because other parts have more steps.
IS_FIRST, IS_LAST, IS_MASKED, IS_PLAIN = 1, 2, 4, 8


@dataclasses.dataclass(frozen=True)
class Walk:
    """Tiles and chunks along each axis, and the heads that share the lanes.

    Attributes:
      axes: of which there are two at least.
      heads: heads that a program works on, one after the other.
      head_dim: channels of a head, a power of two.
      has_bias: whether biases are added to the logits.
    """

    axes: tuple[AxisWalk, ...]
    heads: int
    head_dim: int
    has_bias: bool

    @classmethod
    def of(
        cls, neighborhood: Neighborhood, rows: Rows, heads: int, head_dim: int, *, has_bias: bool
    ) -> Walk:
        """The walk with the least work.

        Args:
          neighborhood: which keys a query sees.
          rows: whether tiles are of queries or of keys.
          heads: heads in all.
          head_dim: channels of a head, a power of two up to 128.
          has_bias: whether biases are added to the logits.
        """
        axes = _best_axes(at_least_2d(neighborhood), rows, has_bias)
        return cls(axes, min(LANES // head_dim, heads), head_dim, has_bias)

    @property
    def rows(self) -> Rows:
        """Whether tiles are of queries or of keys."""
        return self.axes[0].rows

    @property
    def others(self) -> Rows:
        """Whether chunks are of queries or of keys."""
        return others(self.rows)

    @property
    def lanes(self) -> int:
        """Channels of the heads together."""
        return self.heads * self.head_dim

    def tokens(self, of: Rows) -> tuple[tuple[int, int], ...]:
        """Places before the first token at hand, and tokens at hand, along each axis."""
        return tuple(axis.frame.tokens(of) for axis in self.axes)

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation along each axis."""
        return tuple(axis.window.dilation for axis in self.axes)

    @property
    def num_groups(self) -> int:
        """Dilation groups."""
        return math.prod(self.dilation)

    def positions(self, of: Rows) -> tuple[int, ...]:
        """Positions of the longest dilation group along each axis."""
        return tuple(axis.frame.positions(of) for axis in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        """Sides of a tile."""
        return tuple(axis.tile for axis in self.axes)

    @property
    def chunk(self) -> tuple[int, ...]:
        """Sides of a chunk."""
        return tuple(axis.chunk for axis in self.axes)

    @property
    def num_rows(self) -> int:
        """Rows of a tile."""
        return math.prod(self.tile)

    @property
    def num_columns(self) -> int:
        """Columns of a chunk."""
        return math.prod(self.chunk)

    @property
    def num_tiles(self) -> int:
        """Tiles of all dilation groups, of a part."""
        return math.prod(axis.num_tiles for axis in self.axes)

    @property
    def num_steps(self) -> int:
        """Chunks of all tiles, of the part that has most."""
        return math.prod(axis.num_steps for axis in self.axes)

    @property
    def num_fields(self) -> int:
        """Numbers that say what a step is."""
        return 3 + 3 * len(self.axes) + self.has_bias

    @property
    def work(self) -> float:
        """What all steps cost for a block of lanes, in vectors of logits."""
        steps = _work(self.tile, self.chunk, self.num_steps, self.has_bias)
        return self.heads * float(steps)

    @property
    def mask_bytes(self) -> int:
        """What masks take."""
        kinds = (len(axis_masks(axis).seen) * axis.tile for axis in self.axes)
        return sum(kinds) * self.num_columns * 4

    @functools.cached_property
    def biases(self) -> BiasWalk | None:
        """The table of biases, if there are any."""
        return BiasWalk(self.axes, self.num_fields - 1) if self.has_bias else None

    @functools.cached_property
    def bodies(self) -> frozenset[int]:
        """Which of `IS_MASKED` and `IS_PLAIN` steps have; 0 if some have neither."""
        flags = self.steps().reshape(-1, self.num_fields)[:, 1]
        return frozenset(map(int, flags & (IS_MASKED | IS_PLAIN)))

    def steps(self) -> Int[np.ndarray, "*parts F"]:
        """Of every step: the number of its tile, flags, the dilation group; and along each axis the
        number of the tile in its group, the first column of the chunk, and the kind of the mask;
        and with biases their kind.
        """
        return _steps(self.axes, self.biases)

    def plan(self, place: Sequence[Int[Array, ""]] = ()) -> tuple[Array, ...]:
        """What kernels take besides maps: the steps, and the mask along each axis.

        Args:
          place: which origin is in force along each axis, where there are several; the walk of a
            single axis has another one in front.
        """
        axes = self.axes[len(self.axes) - len(place) :]
        parts = (jnp.asarray(axis.part_of)[i] for axis, i in zip(axes, place, strict=True))
        whole = (0,) * (len(self.axes) - len(place))
        return jnp.asarray(self.steps())[*whole, *parts], *self.masks()

    def masks(self) -> list[Float[Array, "kinds tile columns"]]:
        """For each axis, whether rows of a tile see columns of a chunk, as the module says."""
        return [self._mask(i) for i in range(len(self.axes))]

    def _mask(self, i: int) -> Float[Array, "kinds tile columns"]:
        seen = axis_masks(self.axes[i]).seen
        numbers = _LAST if i == len(self.axes) - 1 else _OTHER
        mask = jnp.asarray(np.where(seen, *numbers).astype(np.float32))
        others = [1 if j != i else axis.chunk for j, axis in enumerate(self.axes)]
        mask = jnp.broadcast_to(
            mask.reshape(*mask.shape[:2], *others), (*mask.shape[:2], *self.chunk)
        )
        return mask.reshape(*mask.shape[:2], self.num_columns)


@functools.lru_cache(64)
def _steps(axes: tuple[AxisWalk, ...], biases: BiasWalk | None) -> Int[np.ndarray, "*parts F"]:
    parts = [axis.num_parts for axis in axes]
    steps = [_steps_of(axes, biases, part) for part in np.ndindex(*parts)]
    longest = max(map(len, steps))
    return np.stack([_lengthened(x, longest) for x in steps]).reshape(*parts, -1)


def _lengthened(steps: Int[np.ndarray, "steps F"], count: int) -> Int[np.ndarray, "count F"]:
    """With steps at the end that do nothing: they have the blocks of the last one."""
    more = np.repeat(steps[-1:], count - len(steps), axis=0)
    more[:, 1] = 0
    return np.concatenate([steps, more])


def _steps_of(
    axes: tuple[AxisWalk, ...], biases: BiasWalk | None, part: Sequence[int]
) -> Int[np.ndarray, "steps F"]:
    """The steps of a part, one tile after the other."""
    along = [axis.chunks(i) for axis, i in zip(axes, part, strict=True)]
    index = np.indices([len(tile) for tile, _ in along]).reshape(len(axes), -1)
    tiles, chunks = (
        [of_axis[which][i] for of_axis, i in zip(along, index, strict=True)] for which in range(2)
    )
    order = np.lexsort((*reversed(chunks), *reversed(tiles)))
    tiles, chunks = [x[order] for x in tiles], [x[order] for x in chunks]
    of_axes = list(zip(axes, tiles, chunks, strict=True))
    number = _ravel([t % a.num_tiles for a, t, _ in of_axes], [a.num_tiles for a in axes])
    groups = [t % a.num_tiles // a.per_group for a, t, _ in of_axes]
    within = [t % a.per_group for a, t, _ in of_axes]
    starts = [a.column_of(t, c) for a, t, c in of_axes]
    kinds = [axis_masks(a).kind[t, c] for a, t, c in of_axes]
    if biases is not None:
        kinds.append(biases.kind_of(within[-1], starts[-1]))
    flags = _flags(of_axes, number, biases is not None)
    group = _ravel(groups, [a.window.dilation for a in axes])
    return np.stack([number, flags, group, *within, *starts, *kinds], axis=1).astype(np.int32)


def _flags(
    steps: Sequence[tuple[AxisWalk, np.ndarray, np.ndarray]], number: np.ndarray, has_bias: bool
) -> np.ndarray:
    """The flags of steps, by tile and chunk along each axis, and by number of the tile."""
    is_whole = np.ones(len(number), bool)
    for axis, tile, chunk in steps:
        masks = axis_masks(axis)
        is_whole &= masks.is_whole[tile, chunk]
        if has_bias:
            # What rows that do not exist see must not be added to the gradients of biases.
            is_whole &= masks.is_full[tile]
    is_first = np.diff(number, prepend=-1) != 0
    is_last = np.roll(is_first, -1)
    return IS_FIRST * is_first + IS_LAST * is_last + np.where(is_whole, IS_PLAIN, IS_MASKED)


def _ravel(index: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    return np.ravel_multi_index(tuple(index), tuple(sizes))


@functools.lru_cache(256)
def _best_axes(neighborhood: Neighborhood, rows: Rows, has_bias: bool) -> tuple[AxisWalk, ...]:
    """The tiles and chunks with the least work."""
    tiles = _tiles(neighborhood, rows)
    choices = (_best_chunk(neighborhood, rows, tile, has_bias) for tile in tiles)
    _, tile, chunk = min(choices)
    return axes_of(neighborhood, rows, tile, chunk)


def axes_of(
    neighborhood: Neighborhood, rows: Rows, tile: Sequence[int], chunk: Sequence[int]
) -> tuple[AxisWalk, ...]:
    """The walk along each axis with tiles and chunks of these sides."""
    axes = zip(neighborhood.axes, tile, chunk, _alignments(neighborhood), strict=True)
    return tuple(axis_walk(window, rows, t, c, a) for window, t, c, a in axes)


def _tiles(neighborhood: Neighborhood, rows: Rows) -> list[tuple[int, ...]]:
    """Sides of tiles that come into question: none is smaller than it need be."""
    *leading, last = (axis_frame(window).positions(rows) for window in neighborhood.axes)
    sides = [[n for n in _SIDES if n <= length] for length in leading]
    widths = [n for n in _WIDTHS if n < last + SUBLANES]
    tiles = [tile for tile in itertools.product(*sides, widths) if math.prod(tile) <= _ROWS]
    least = min(LANES, max(map(math.prod, tiles)))
    return [tile for tile in tiles if math.prod(tile) >= least]


def _best_chunk(
    neighborhood: Neighborhood, rows: Rows, tile: tuple[int, ...], has_bias: bool
) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """The least work with a tile; the tile; and the sides of chunks with which it is that."""
    axes = zip(neighborhood.axes, tile, _alignments(neighborhood), strict=True)
    options = [_sides_of_chunks(window, rows, side, a) for window, side, a in axes]
    sides = np.meshgrid(*(side for side, _ in options), indexing="ij")
    columns = functools.reduce(np.multiply, sides)
    steps = functools.reduce(np.multiply.outer, (steps for _, steps in options))
    most = max(LANES, min(_COLUMNS, _LOGITS // math.prod(tile)))
    fits = (columns % LANES == 0) & (columns <= most)
    if has_bias:
        fits &= suits(sides)
    work = np.where(fits, _work(tile, sides, steps, has_bias), np.inf)
    best = np.unravel_index(np.argmin(work), work.shape)
    return float(work[best]), tile, tuple(int(side[best]) for side in sides)


@functools.lru_cache(1024)
def _sides_of_chunks(
    window: AxisWindow, rows: Rows, tile: int, alignment: int
) -> tuple[Int[np.ndarray, "S"], Int[np.ndarray, "S"]]:
    """Sides of chunks along an axis, and how many chunks all tiles have together, of the part that
    has most.
    """
    lengths = columns_needed(window, rows, tile, alignment)[2]
    tiles = -(-axis_frame(window).positions(rows) // tile) * window.dilation
    # Numbers of bfloat16 fill 16 rows of a vector register.
    unit = 1 if alignment == 1 else 2 * alignment
    most = int(lengths.max())
    # Longer ones than that only so that the sides together are a multiple of the lanes.
    longer = {round_up(most, 1 << i) for i in range(LANES.bit_length())}
    sides = np.array(sorted({*range(unit, most + 1, unit), *longer}))
    sides = sides[(sides % unit == 0) & (sides <= _COLUMNS)]
    counts = -(-lengths.reshape(-1, tiles, 1) // sides)
    return sides, counts.sum(axis=1).max(axis=0)


def _alignments(neighborhood: Neighborhood) -> list[int]:
    return [1] * (len(neighborhood.axes) - 1) + [SUBLANES]


def _work(tile: Sequence[int], chunk: Sequence[Any], steps: Any, has_bias: bool) -> Any:
    """Of so many steps with chunks of these sides, in vectors of logits (numbers or arrays)."""
    rows = round_up(math.prod(tile), 2 * SUBLANES) / SUBLANES
    columns = functools.reduce(np.multiply, chunk) / LANES
    logits = rows * columns + _OF_ROWS * rows + _OF_COLUMNS * columns + _STEP
    # Keys and values in half precision, and the masks.
    fetched = columns * LANES * (4 * LANES + 4 * sum(tile))
    if has_bias:
        fetched = fetched + 4 * block_size_of(tile, chunk)
    return steps * np.maximum(logits, fetched / _BYTES)
