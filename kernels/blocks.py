"""Cutting a neighborhood into the blocks that a GPU kernel works on.

A program of a kernel owns a *tile* of rows, which are queries, or keys in the backward pass for
keys and values, and walks over the *slab* of columns (the others) that its rows can meet, one
*chunk* at a time. Tiles and chunks are boxes of positions of one dilation group, with sides that
are powers of two. So a block of logits is tile by chunk, and the number of blocks is what a kernel
costs.

Slabs start at ``clip(tile start + offset, 0, positions - halo)``, as in `natjax.kernels.tiles`.
Everything here works on traced values, inside a kernel, and on NumPy arrays, in a plan; which
query sees which key is asked of `natjax.kernels.window` alone.
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
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels import tiles
from natjax.kernels.window import AxisWindow, Neighborhood, window_end, window_start

type Ints = Any
type Bools = Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisBlocks:
    """Tiles, slabs and chunks along one axis.

    Attributes:
      window: the neighborhood along the axis.
      rows: what the rows of a block are; its columns are the others.
      tile: row positions in a tile, a power of two.
      chunk: column positions in a chunk, a power of two.
      offset: from the start of a tile to that of its slab, away from the borders.
      halo: column positions in a slab.
    """

    window: AxisWindow
    rows: Literal["queries", "keys"]
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

    def pattern(self) -> AxisPattern:
        """What all blocks along the axis look like."""
        group, first, start = self.locate(np.arange(self.num_tiles))
        row = first[:, None] + np.arange(self.tile)
        column = start[:, None] + np.arange(self.num_chunks * self.chunk)
        row, column, group = row[:, :, None], column[:, None, :], group[:, None, None]
        seen = self.is_neighbor(row, column, group)
        # Tiles at one distance from their slab have the same biases.
        signature = np.concatenate([seen.reshape(len(seen), -1), (start - first)[:, None]], axis=1)
        _, examples, kind = np.unique(signature, axis=0, return_index=True, return_inverse=True)
        bias = np.where(seen, self.distance(row, column), 0)

        def by_chunk(x: np.ndarray) -> np.ndarray:
            x = x[examples].reshape(-1, self.tile, self.num_chunks, self.chunk)
            return x.transpose(0, 2, 1, 3)

        return AxisPattern(kind.reshape(-1), by_chunk(seen), by_chunk(bias))


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPattern:
    """What the blocks along an axis look like: ``c`` chunks of ``s`` columns for ``t`` rows.

    Attributes:
      kind: which of ``S`` kinds each tile is; tiles of one kind have the same blocks.
      seen: who sees whom, for each kind and chunk.
      bias: index of the bias of the axis, in range where they do.
    """

    kind: Int[np.ndarray, "A"]
    seen: Bool[np.ndarray, "S c t s"]
    bias: Int[np.ndarray, "S c t s"]


@functools.cache
def axis_blocks(
    window: AxisWindow, rows: Literal["queries", "keys"], tile: int, chunk: int
) -> AxisBlocks:
    """Blocks along an axis, with the smallest slabs that hold what the rows meet."""
    positions = window.max_group_length
    starts = np.arange(0, positions, tile)
    first, last = np.full(len(starts), positions), np.zeros(len(starts), int)
    # Dilation groups come in two lengths at most, the first being the longest.
    for group in {0, window.dilation - 1}:
        low, high = _meets(window, rows, group)
        cuts = starts[starts < len(low)]
        count = len(cuts)
        first[:count] = np.minimum(first[:count], np.minimum.reduceat(low, cuts))
        last[:count] = np.maximum(last[:count], np.maximum.reduceat(high, cuts))
    offset, halo = tiles.fit_slabs(first, last, tile, positions)
    return AxisBlocks(window=window, rows=rows, tile=tile, chunk=chunk, offset=offset, halo=halo)


def _meets(
    window: AxisWindow, rows: Literal["queries", "keys"], group: int
) -> tuple[Int[np.ndarray, "positions"], Int[np.ndarray, "positions"]]:
    """The columns that each row of a dilation group meets: first, and one past the last."""
    if rows == "keys":
        return window.queries(group)
    query = np.arange(int(window.group_length(group))) * window.dilation + group
    return window.start(query), window.end(query)


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles, slabs and chunks of a token layout; tiles and chunks are numbered row-major."""

    axes: tuple[AxisBlocks, ...]

    @classmethod
    def of(
        cls,
        hood: Neighborhood,
        rows: Literal["queries", "keys"],
        tile: Sequence[int],
        chunk: Sequence[int],
    ) -> Blocks:
        """Blocks of a neighborhood; ``tile`` and ``chunk`` have one side an axis."""
        return cls(
            tuple(
                axis_blocks(window, rows, t, c)
                for window, t, c in zip(hood.axes, tile, chunk, strict=True)
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
        return Tile(self, index, _unravel(index, [axis.num_tiles for axis in self.axes]))

    @property
    def pattern(self) -> Pattern:
        """What the blocks look like; see `AxisBlocks.pattern`."""
        return _pattern(self)


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
        within = _unravel_power_of_two(
            jnp.arange(self.blocks.num_rows, dtype=jnp.int32),
            [axis.tile for axis in self.blocks.axes],
        )
        return tuple(first + i for (_, first, _), i in zip(self._located, within, strict=True))

    def columns(self, chunk: Ints) -> tuple[Ints, ...]:
        """Position of each column of a chunk along each axis."""
        axes = self.blocks.axes
        chunks = _unravel(chunk, [axis.num_chunks for axis in axes])
        within = _unravel_power_of_two(
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


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """What the blocks of a layout look like; tiles of one kind look the same.

    Attributes:
      axes: the same along each axis.
      bias_shape: shape of one head's biases.
    """

    axes: tuple[AxisPattern, ...]
    bias_shape: tuple[int, ...]

    @property
    def num_kinds(self) -> int:
        """Kinds of tiles."""
        return math.prod(len(axis.seen) for axis in self.axes)

    @functools.cached_property
    def kind(self) -> Int[np.ndarray, "tiles"]:
        """Kind of each tile, by number."""
        kinds = np.zeros((), np.int32)
        for axis in self.axes:
            kinds = kinds[..., None] * len(axis.seen) + axis.kind.astype(np.int32)
        return kinds.reshape(-1)

    def table(
        self, rpb: Float[Array, "N *R"] | None, hidden: float, factor: float
    ) -> Float[Array, "N kinds chunks t s"]:
        """What to add to the logits: the bias times a factor, and ``hidden`` for the unseen.

        Without a bias there is one head.
        """
        n = len(self.axes)
        masks = (self._spread(axis.seen, i) for i, axis in enumerate(self.axes))
        seen = functools.reduce(np.logical_and, masks)
        if rpb is None:
            values = jnp.zeros((1, *seen.shape), jnp.float32)
        else:
            index = (self._spread(axis.bias, i) for i, axis in enumerate(self.axes))
            values = factor * rpb.astype(jnp.float32)[:, *index]
        table = jnp.where(seen[None], values, jnp.float32(hidden))
        order = (1 + axis * 4 + part for part in range(4) for axis in range(n))
        return self._merge(table.transpose(0, *order))

    def bias_gradient(self, blocks: Float[Array, "N kinds chunks t s"]) -> Float[Array, "N *R"]:
        """The transpose of `table`: sum of the blocks' entries by the bias that was added."""
        n = len(self.axes)
        shapes = [axis.seen.shape for axis in self.axes]
        x = blocks.reshape(-1, *(shape[part] for part in range(4) for shape in shapes))
        x = x.transpose(0, *(1 + part * n + axis for axis in range(n) for part in range(4)))
        for axis, size in zip(self.axes, self.bias_shape, strict=True):
            # Takes the foremost axis' four dimensions away and appends one for its biases.
            index = np.where(axis.seen, axis.bias, -1)
            one_hot = jax.nn.one_hot(index, size, dtype=x.dtype)
            x = jnp.tensordot(x, one_hot, axes=((1, 2, 3, 4), (0, 1, 2, 3)), precision="highest")
        return x

    def _spread(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Put the four dimensions of one axis where they broadcast with those of the others."""
        n = len(self.axes)
        return x.reshape((1,) * (4 * axis) + x.shape + (1,) * (4 * (n - axis - 1)))

    def _merge(self, x: Array) -> Array:
        n = len(self.axes)
        shape = [math.prod(x.shape[1 + part * n : 1 + part * n + n]) for part in range(4)]
        return x.reshape(x.shape[0], *shape)


@functools.lru_cache(64)
def _pattern(blocks: Blocks) -> Pattern:
    sizes = tuple(2 * axis.window.kernel_size - 1 for axis in blocks.axes)
    return Pattern(tuple(axis.pattern() for axis in blocks.axes), sizes)


def _unravel(index: Ints, sizes: Sequence[int]) -> tuple[Ints, ...]:
    parts = []
    for size in reversed(sizes):
        parts.append(index % size)
        index = index // size
    return tuple(reversed(parts))


def _unravel_power_of_two(index: Ints, sizes: Sequence[int]) -> tuple[Ints, ...]:
    """As `_unravel`, by shifts: no test of the sign on every lane."""
    parts = []
    for size in reversed(sizes):
        parts.append(index & (size - 1))
        index = index >> (size.bit_length() - 1)
    return tuple(reversed(parts))
