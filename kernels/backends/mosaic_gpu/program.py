"""What a kernel is compiled for, and where its tiles and chunks are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS, SWIZZLED_ROWS, KernelConfig
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.backends.mosaic_gpu.walk import Turn, Walk
from natjax.kernels.plan.blocks import Ints, unravel

type Ref = Any
type Index = tuple[Ints, Ints, Ints]

# How tensor cores leave a block of products in the registers of a warpgroup, and what is left of
# that for a number of each row, or of each column.
BLOCK = plgpu.Layout.WGMMA
OF_ROWS = BLOCK.reduce(1)
OF_COLUMNS = BLOCK.reduce(0)
# Bytes of channels that lie together in shared memory, the most that can be swizzled.
_SWIZZLED_BYTES = 128
# And bytes of a line of the table.
_TABLE_BYTES = 32
# Registers of a thread, where two warpgroups multiply and one copies; and the most of any thread.
MULTIPLYING, COPYING = 232, 40
_MOST_REGISTERS = 255


@dataclasses.dataclass(frozen=True)
class Place:
    """What a block of threads works on.

    Attributes:
      image: its number.
      head: of the rows.
      tile: its number among those of an image.
      groups: dilation group along each axis.
      first: position of the first row along each axis.
      slab: position of the first column along each axis.
    """

    image: Ints
    head: Ints
    tile: Ints
    groups: Index
    first: Index
    slab: Index


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a slab.

    Attributes:
      number: among those of the slab.
      start: position of its first column along each axis.
    """

    number: Ints
    start: Index


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Shared memory of rows or columns.

    Attributes:
      flat: as products take it, ``[..., parts, tokens, elements]``.
      boxed: the same memory as copies of boxes take it, ``[..., parts, boxes, lines, places,
        elements]``; None where copies are of one line.
    """

    flat: Ref
    boxed: Ref = None

    def at(self, index: Ints) -> Tokens:
        """Those of one warpgroup, or of one place of the ring."""
        return Tokens(self.flat.at[index], None if self.boxed is None else self.boxed.at[index])


@dataclasses.dataclass(frozen=True)
class Program:
    """What a kernel is compiled for.

    Attributes:
      layout: tokens and blocks.
      config: sizes of blocks and of the ring.
      heads: query heads at hand.
      kv_heads: key heads at hand.
      width: head size.
      dtype: of queries, keys and values.
      scale: factor on the products of queries and keys.
      batch: images.
      images: that a block of threads works on, one after the other.
      skips_chunks: whether a table says which chunks of its slab a tile meets; it does where two
        warpgroups multiply.
      interpret: whether Pallas interprets the kernel.
    """

    layout: Layout
    config: KernelConfig
    heads: int
    kv_heads: int
    width: int
    dtype: Any
    scale: float
    batch: int
    images: int
    skips_chunks: bool
    interpret: bool

    @property
    def groups(self) -> int:
        """Query heads for each key head."""
        return max(1, self.heads // self.kv_heads)

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.layout.blocks.num_columns

    @property
    def elements(self) -> int:
        """Channels of a part, which is what is swizzled together.

        Where columns are summed over, they come in as many at once.
        """
        most = _SWIZZLED_BYTES // self.dtype.itemsize
        sizes = (most, most // 2, most // 4)
        return next(n for n in sizes if self.width % n == 0 and self.columns % n == 0)

    @property
    def parts(self) -> range:
        """Parts of a head's channels."""
        return range(self.width // self.elements)

    @property
    def row_line(self) -> int:
        """Rows of a line that one warpgroup has."""
        return min(self.layout.tile[2], GROUP_ROWS)

    @property
    def row_lines(self) -> int:
        """Lines of rows that one warpgroup has."""
        return GROUP_ROWS // self.row_line

    @property
    def fetched_lines(self) -> int:
        """Lines of rows that one copy fetches: those that follow one another, or one.

        Past the end of the axis of lines there are others, whose rows are not stored.
        """
        dilation, places, tile = self.layout.dilation[1], self.layout.places[1], self.layout.tile[1]
        if self.interpret or not self.config.boxes or dilation > 1 or places < tile:
            return 1
        return min(tile, self.row_lines)

    @property
    def stored_lines(self) -> int:
        """Lines of rows that one copy stores: as many, where all are inside of their axis."""
        return 1 if self.layout.places[1] % self.layout.tile[1] else self.fetched_lines

    @property
    def row_copies(self) -> int:
        """Copies of a warpgroup's rows."""
        return len(self.parts) * self.row_lines // self.fetched_lines

    @property
    def column_lines(self) -> int:
        """Lines of columns that one copy fetches.

        More than one where they follow one another and every chunk ends inside of their axis:
        beyond it are tokens of others, of which one that is nan would reach the rows here.
        """
        follow = self.layout.dilation[1] == 1 and self.layout.chunks_fit(1)
        return self.layout.chunk[1] if self.config.boxes and follow and not self.interpret else 1

    @property
    def column_copies(self) -> int:
        """Copies of the columns of a chunk."""
        frames, lines, _ = self.layout.chunk
        return len(self.parts) * frames * (lines // self.column_lines)

    def scalars_memory(self, dtype: Any) -> Any:
        """Shared memory for a number of each column of a chunk, for each place of the ring."""
        return plgpu.SMEM((self.config.num_stages, *self.layout.chunk), dtype)

    def rows_memory(self, count: int) -> Any:
        """Shared memory for the rows of a warpgroup, so many times."""
        return self._memory(count, GROUP_ROWS, self.fetched_lines, self.row_line)

    def columns_memory(self) -> Any:
        """Shared memory for the columns of a chunk, for each place of the ring."""
        stages, length = self.config.num_stages, self.layout.chunk[2]
        return self._memory(stages, self.columns, self.column_lines, length)

    def _memory(self, count: int, tokens: int, lines: int, length: int) -> Any:
        """Of so many tokens, which come in boxes of lines of some length."""

        def of(*shape: int) -> Any:
            return plgpu.SMEM(
                (count, len(self.parts), *shape, self.elements),
                self.dtype,
                transforms=(
                    plgpu.TilingTransform((SWIZZLED_ROWS, self.elements)),
                    plgpu.SwizzleTransform(self.elements * self.dtype.itemsize),
                ),
            )

        if lines == 1:
            return of(tokens)
        return plgpu.RefUnion(of(tokens // (lines * length), lines, length), of(tokens))

    @staticmethod
    def tokens(memory: Any, lines: int) -> Tokens:
        """What a kernel is given for rows or columns, which come in boxes of so many lines."""
        if lines == 1:
            return Tokens(memory)
        boxed, flat = memory
        return Tokens(flat, boxed)

    def table_memory(self) -> Any:
        """Shared memory for the blocks of a tile."""
        blocks = self.layout.blocks
        # With 8 columns in a line, what the threads of a warp load at once lies in different banks;
        # with more they would load in another order, and sort what they have by selections.
        transforms = (
            plgpu.TilingTransform((SWIZZLED_ROWS, _TABLE_BYTES // 4)),
            plgpu.SwizzleTransform(_TABLE_BYTES),
        )
        shape = (blocks.num_chunks, blocks.num_rows, blocks.num_columns)
        return plgpu.SMEM(shape, jnp.float32, transforms=transforms)

    def place(self, tile: Ints, head: Ints, image: Ints) -> Place:
        """Where a tile of a head of an image is."""
        axes = self.layout.blocks.axes
        index = unravel(tile, [axis.num_tiles for axis in axes])
        located = [axis.locate(i) for axis, i in zip(axes, index, strict=True)]
        groups, first, slab = zip(*located, strict=True)
        return Place(image, head, tile, groups, first, slab)

    def place_of_block(self, heads: int) -> Place:
        """What the block of threads at hand works on first, of so many heads."""
        tiles = self.layout.blocks.num_tiles
        number = lax.axis_index("block")
        image = number // (tiles * heads) * self.images
        return self.place(number % tiles, number // tiles % heads, image)

    def count_images(self, first: Place) -> Ints:
        """How many images a block of threads works on."""
        if self.batch % self.images == 0:  # as where it is one
            return self.images
        return jnp.minimum(self.images, self.batch - first.image)

    def walk(self, reach: Ref, tile: Ints, slabs: Ints = 1) -> Walk:
        """The chunks that a tile meets, in so many slabs.

        Where two warpgroups multiply, those of either follow one another.
        """
        axes = self.layout.blocks.axes
        first, end = [0] * len(axes), [axis.num_chunks for axis in axes]
        if self.skips_chunks:
            missing = len(axes) - self.layout.given
            for axis in range(self.layout.given):
                first[missing + axis] = reach[tile, axis, 0]
                end[missing + axis] = reach[tile, axis, 0] + reach[tile, axis, 1]
        return Walk(tuple(first), tuple(end), slabs, self.layout.split_axis)

    def own_chunks(self, reach: Ref, tile: Ints, warpgroup: Ints) -> tuple[Ints, Ints] | None:
        """The chunks along the split axis that the rows of one of two warpgroups meet."""
        if self.config.warpgroups == 1:
            return None
        own = self.layout.given + warpgroup
        return reach[tile, own, 0], reach[tile, own, 0] + reach[tile, own, 1]

    def chunk(self, place: Place, index: tuple[Ints, ...]) -> Chunk:
        """A chunk of a tile's slab, by its number along each axis."""
        axes, number = self.layout.blocks.axes, 0
        for axis, i in zip(axes, index, strict=True):
            number = number * axis.num_chunks + i
        starts = (s + i * a.chunk for s, i, a in zip(place.slab, index, axes, strict=True))
        return Chunk(number, tuple(starts))  # pyrefly: ignore[bad-argument-type]

    def head_of_group(self, place: Place, turn: Turn) -> Ints:
        """The query head whose turn it is, where rows are keys."""
        return place.head * self.groups + turn.slab

    def line(self, place: Place, frame: Ints, line: Ints) -> Ints:
        """Number of the line of the first two positions of a token."""
        places, dilation = self.layout.places, self.layout.dilation
        number = (place.image * places[0] + frame) * dilation[0] + place.groups[0]
        return (number * places[1] + line) * dilation[1] + place.groups[1]

    def scalars_row(self, place: Place, head: Ints, heads: int) -> Ints:
        """Number of a head of the tile's image and dilation groups in an array of scalars."""
        number = place.image
        for groups, group in zip(self.layout.dilation, place.groups, strict=True):
            number = number * groups + group
        return number * heads + head

    def channels(self, place: Place, head: Ints, heads: int, part: int) -> Any:
        """Channels of a part of a head in an array of lines."""
        first = (place.groups[2] * heads + head) * self.width
        return pl.ds(first + part * self.elements, self.elements)


def registers_of_thread(multiplying: int) -> int:
    """The most registers of a thread that multiplies, of so many warpgroups that do."""
    return MULTIPLYING if multiplying == 2 else _MOST_REGISTERS
