"""What the kernels have in common: where tiles and chunks are, copies of lines, and products.

Everything here but `Program` itself is done by a warpgroup, of which one copies columns and the
others multiply.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS, SWIZZLED_ROWS, KernelConfig
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.plan.blocks import unravel

type Ref = Any
type Ints = Any
type Index = tuple[Ints, Ints, Ints]

# How tensor cores leave a block of products in the registers of a warpgroup, and what is left of
# that for a number of each row, or of each column.
BLOCK = plgpu.Layout.WGMMA
OF_ROWS = BLOCK.reduce(1)
OF_COLUMNS = BLOCK.reduce(0)
# Bytes of channels that lie together in shared memory, the most that can be swizzled.
_SWIZZLED_BYTES = 128
# Registers of a thread, where two warpgroups multiply and one copies.
_MULTIPLYING, _COPYING = 232, 40


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
      skips_chunks: whether a table says which chunks of its slab a tile meets.
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
    def copies_boxes(self) -> bool:
        """Whether the lines of a chunk that follow one another are one copy.

        They must, and every chunk must end inside of both axes.
        """
        layout = self.layout
        follow = max(layout.dilation[1:]) == 1 and all(map(layout.chunks_fit, (1, 2)))
        return self.config.boxes and follow and not self.interpret

    @property
    def column_copies(self) -> int:
        """Copies of the columns of a chunk."""
        frames, lines, _ = self.layout.chunk
        return len(self.parts) * frames * (1 if self.copies_boxes else lines)

    def rows_memory(self, count: int) -> Any:
        """Shared memory for the rows of a warpgroup, so many times."""
        return self._memory(count, GROUP_ROWS)

    def table_memory(self) -> Any:
        """Shared memory for the blocks of a tile."""
        blocks = self.layout.blocks
        elements = _SWIZZLED_BYTES // 4
        transforms = (
            plgpu.TilingTransform((SWIZZLED_ROWS, elements)),
            plgpu.SwizzleTransform(_SWIZZLED_BYTES),
        )
        shape = (blocks.num_chunks, blocks.num_rows, blocks.num_columns)
        return plgpu.SMEM(shape, jnp.float32, transforms=transforms)

    def columns_memory(self) -> Any:
        """Shared memory for the columns of a chunk, for each place of the ring."""
        return self._memory(self.config.num_stages, self.columns)

    def _memory(self, count: int, tokens: int) -> Any:
        transforms = (
            plgpu.TilingTransform((SWIZZLED_ROWS, self.elements)),
            plgpu.SwizzleTransform(self.elements * self.dtype.itemsize),
        )
        shape = (count, len(self.parts), tokens, self.elements)
        return plgpu.SMEM(shape, self.dtype, transforms=transforms)

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
        if self.batch % self.images == 0:
            return self.images
        return jnp.minimum(self.images, self.batch - first.image)

    def met(self, reach: Ref, tile: Ints) -> tuple[list[Ints], list[Ints]]:
        """Along each axis the first chunk that a tile meets, and how many there are from there."""
        axes = self.layout.blocks.axes
        if not self.skips_chunks:
            return [0] * len(axes), [axis.num_chunks for axis in axes]
        missing, given = len(axes) - self.layout.given, range(self.layout.given)
        first = [reach[tile, axis, 0] for axis in given]
        return [0] * missing + first, [1] * missing + [reach[tile, axis, 1] for axis in given]

    def chunk(self, place: Place, met: tuple[list[Ints], list[Ints]], turn: Ints) -> Chunk:
        """The chunk that comes at a turn."""
        axes = self.layout.blocks.axes
        index = [f + i for f, i in zip(met[0], unravel(turn, met[1]), strict=True)]
        number = 0
        for axis, i in zip(axes, index, strict=True):
            number = number * axis.num_chunks + i
        starts = (s + i * a.chunk for s, i, a in zip(place.slab, index, axes, strict=True))
        return Chunk(number, tuple(starts))  # pyrefly: ignore[bad-argument-type]

    def line(self, place: Place, frame: Ints, line: Ints) -> Ints:
        """Number of the line of the first two positions of a token."""
        places, dilation = self.layout.places, self.layout.dilation
        number = (place.image * places[0] + frame) * dilation[0] + place.groups[0]
        return (number * places[1] + line) * dilation[1] + place.groups[1]

    def channels(self, place: Place, head: Ints, heads: int, part: int) -> Any:
        """Channels of a part of a head in an array of lines."""
        first = (place.groups[2] * heads + head) * self.width
        return pl.ds(first + part * self.elements, self.elements)


def each_image(program: Program, first: Place, body: Callable[[Ints, Place], None]) -> None:
    """Work on one image after the other.

    Args:
      program: what the kernel is compiled for.
      first: the tile in the first image.
      body: a function of the images before and of the tile.
    """

    def at(before: Ints) -> None:
        body(before, dataclasses.replace(first, image=first.image + before))

    if program.images == 1:
        at(jnp.int32(0))
    else:
        pl.loop(0, program.count_images(first))(at)


# Copies.


def _row_line(program: Program, place: Place, warpgroup: Ints, number: int) -> tuple[Any, ...]:
    """A line of a warpgroup's rows: its number, its first place, and whether it is in the array.

    One that is not stands at the end of the array, and says None where all lines are inside.
    """
    tile, places = program.layout.tile, program.layout.places
    row = (warpgroup * program.row_lines + number) * program.row_line
    within = unravel(row, tile)
    positions = [f + i for f, i in zip(place.first, within, strict=True)]
    exists = None
    for axis in (0, 1):
        if places[axis] % tile[axis]:
            inside = positions[axis] < places[axis]
            exists = inside if exists is None else exists & inside
            positions[axis] = jnp.minimum(positions[axis], places[axis] - 1)
    return program.line(place, positions[0], positions[1]), positions[2], exists


def fetch_rows(
    program: Program,
    source: Ref,
    target: Ref,
    barrier: Ref,
    place: Place,
    heads: int,
    warpgroup: Ints,
) -> None:
    """Copy the rows of a warpgroup into shared memory; arrives once for each line and part."""
    for number in range(program.row_lines):
        line, first, _ = _row_line(program, place, warpgroup, number)
        rows = pl.ds(number * program.row_line, program.row_line)
        for part in program.parts:
            channels = program.channels(place, place.head, heads, part)
            plgpu.copy_gmem_to_smem(
                source.at[line, pl.ds(first, program.row_line), channels],
                target.at[part, rows],
                barrier,
            )


def store_rows(
    program: Program, source: Ref, target: Ref, place: Place, heads: int, warpgroup: Ints
) -> None:
    """Copy the rows of a warpgroup out of shared memory, those that there are."""
    plgpu.commit_smem()
    # Where lines are is found again: kept from when rows were fetched, it took registers that sums
    # need in between, which then spilled.
    image, head, tile, warpgroup = lax.optimization_barrier(
        (place.image, place.head, place.tile, warpgroup)
    )
    place = program.place(tile, head, image)
    for number in range(program.row_lines):
        line, first, exists = _row_line(program, place, warpgroup, number)
        rows = pl.ds(number * program.row_line, program.row_line)
        store = functools.partial(
            _store_line, program, source, target, place, heads, rows, line, first
        )
        if exists is None:
            store()
        else:
            # Pallas' interpreter knows no predicate of a copy.
            pl.when(exists)(store)
    plgpu.wait_smem_to_gmem(0)


def _store_line(
    program: Program,
    source: Ref,
    target: Ref,
    place: Place,
    heads: int,
    rows: Any,
    line: Ints,
    first: Ints,
) -> None:
    for part in program.parts:
        channels = program.channels(place, place.head, heads, part)
        own = target.at[line, pl.ds(first, program.row_line), channels]
        plgpu.copy_smem_to_gmem(source.at[part, rows], own)


def _column_line(program: Program, place: Place, chunk: Chunk, frame: int, line: int) -> Ints:
    """Number of a line of a chunk's columns; one past the end of an axis is the last there is."""
    positions = [chunk.start[0] + frame, chunk.start[1] + line]
    for axis in (0, 1):
        if not program.layout.chunks_fit(axis):
            positions[axis] = jnp.minimum(positions[axis], program.layout.places[axis] - 1)
    return program.line(place, *positions)


def fetch_columns(
    program: Program,
    source: Ref,
    target: Ref,
    barrier: Ref,
    place: Place,
    chunk: Chunk,
    head: Ints,
    heads: int,
) -> None:
    """Copy the columns of a chunk into shared memory; arrives `Program.column_copies` times.

    Places past the end of a line are zeros.
    """
    frames, lines, length = program.layout.chunk
    for part in program.parts:
        channels = program.channels(place, head, heads, part)
        for frame in range(frames):
            if program.copies_boxes:
                line = _column_line(program, place, chunk, frame, 0)
                # With as few windows as a line of the box has tokens, the windows of one row after
                # the other are the tokens of the box.
                windows = program.layout.places[2] - length + 1
                view = plgpu.im2col_ref(source, window_shape=(windows,))
                box = view.at[pl.ds(line * length, lines * length), chunk.start[2], channels]
                rows = pl.ds(frame * lines * length, lines * length)
                plgpu.copy_gmem_to_smem(box, target.at[part, rows], barrier)
                continue
            for i in range(lines):
                line = _column_line(program, place, chunk, frame, i)
                columns = source.at[line, pl.ds(chunk.start[2], length), channels]
                rows = pl.ds((frame * lines + i) * length, length)
                plgpu.copy_gmem_to_smem(columns, target.at[part, rows], barrier)


def fetch_scalars(
    program: Program,
    source: Ref,
    target: Ref,
    barrier: Ref,
    place: Place,
    chunk: Chunk,
    head: Ints,
    heads: int,
) -> None:
    """Copy a number of each column of a chunk into shared memory; arrives once a line."""
    frames, lines, length = program.layout.chunk
    group = place.groups[2] * heads + head
    for frame in range(frames):
        for i in range(lines):
            line = _column_line(program, place, chunk, frame, i)
            columns = source.at[line, group, pl.ds(chunk.start[2], length)]
            rows = pl.ds((frame * lines + i) * length, length)
            plgpu.copy_gmem_to_smem(columns, target.at[rows], barrier)


def fetch_table(program: Program, source: Ref, target: Ref, barrier: Ref) -> None:
    """Copy the blocks of a tile into shared memory; arrives once a chunk."""
    for chunk in range(program.layout.blocks.num_chunks):
        plgpu.copy_gmem_to_smem(source.at[chunk], target.at[chunk], barrier)


def load_scalars(source: Ref, place: Place, warpgroup: Ints) -> jax.Array:
    """A number of each row of a warpgroup, of an array in the order of tiles."""
    rows = source.at[place.image, place.head, place.tile, pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)]
    return plgpu.load(rows, layout=OF_ROWS, optimized=False)


# The ring.


@dataclasses.dataclass(frozen=True)
class Stream:
    """An operand of which chunk after chunk goes through the ring.

    Attributes:
      memory: shared memory, of a place of the ring.
      full: barriers that a chunk has arrived.
      free: barriers that all who multiply are done with it.
    """

    memory: Ref
    full: Ref
    free: Ref


def produce(
    program: Program,
    total: Ints,
    streams: Sequence[Stream],
    fetches: Sequence[Callable[[Ints, Ref, Ref], None]],
) -> None:
    """Copy one chunk after the other into the ring, as places become free.

    Args:
      program: what the kernel is compiled for.
      total: chunks in all.
      streams: operands.
      fetches: for each, a function of turn, place of the ring and barrier that begins its copies.
    """
    stages = program.config.num_stages

    @pl.loop(0, total)
    def _(turn: Ints) -> None:
        slot = lax.rem(turn, jnp.int32(stages))
        for stream, fetch in zip(streams, fetches, strict=True):

            @pl.when(turn >= stages)
            def _(stream: Stream = stream) -> None:
                plgpu.barrier_wait(stream.free.at[slot])

            fetch(turn, stream.memory.at[slot], stream.full.at[slot])


def produce_images(
    program: Program,
    first: Place,
    met: tuple[list[Ints], list[Ints]],
    streams: Sequence[Stream],
    sources: Sequence[Ref],
    head: Ints,
) -> None:
    """Copy the chunks of keys and of values of one image after the other into the ring.

    Args:
      program: what the kernel is compiled for.
      first: the tile in the first image.
      met: which chunks it meets.
      streams: operands.
      sources: lines of each.
      head: whose channels.
    """
    total = total_of(met)

    def fetch(source: Ref) -> Callable[[Ints, Ref, Ref], None]:
        def begin(turn: Ints, memory: Ref, barrier: Ref) -> None:
            place, own = first, turn
            if program.images > 1:
                # Of a tile that meets nothing there is no turn.
                place = dataclasses.replace(first, image=first.image + turn // total)
                own = turn % total
            chunk = program.chunk(place, met, own)
            fetch_columns(program, source, memory, barrier, place, chunk, head, program.kv_heads)

        return begin

    count = program.count_images(first) if program.images > 1 else 1
    produce(program, total * count, streams, [fetch(source) for source in sources])


# Products.


def product(
    program: Program,
    rows: Ref,
    columns: Ref,
    begun: Callable[[], None] = lambda: None,
) -> jax.Array:
    """The products of a warpgroup's rows and the columns of a chunk, summed over channels.

    Args:
      program: what the kernel is compiled for.
      rows: shared memory of rows.
      columns: shared memory of columns.
      begun: called when tensor cores have been given their work, and before it is waited for.
    """

    def multiply(acc: Ref) -> jax.Array:
        for part in program.parts:
            plgpu.wgmma(acc, rows.at[part], columns.at[part].transpose((1, 0)))
        begun()
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((GROUP_ROWS, program.columns), jnp.float32))


def accumulate(
    program: Program, sums: Sequence[jax.Array], weights: jax.Array, columns: Ref, left: Ref
) -> list[jax.Array]:
    """Add to sums, part by part, the weighted sum of the columns of a chunk for each row.

    Args:
      program: what the kernel is compiled for.
      sums: what is added to.
      weights: of each row and column, in registers.
      columns: shared memory of columns.
      left: shared memory for the weights where the kernel is interpreted: Pallas' interpreter does
        not multiply what is in registers, nor begin with sums.
    """
    weights = weights.astype(program.dtype)
    if not program.interpret:
        multiply = functools.partial(_multiply, weights=weights, columns=columns)
        return list(pl.run_state(multiply)(tuple(map(plgpu.ACC.init, sums))))
    left[...] = weights
    plgpu.commit_smem()

    def alone(acc: Ref, part: int) -> jax.Array:
        plgpu.wgmma(acc, left, columns.at[part])
        return acc[...]

    shape = plgpu.ACC((GROUP_ROWS, program.elements), jnp.float32)
    return [
        x + pl.run_scoped(functools.partial(alone, part=part), shape) for part, x in enumerate(sums)
    ]


def _multiply(sums: tuple[Ref, ...], weights: jax.Array, columns: Ref) -> None:
    for part, acc in enumerate(sums):
        plgpu.wgmma(acc, weights, columns.at[part])


def zeros(program: Program) -> list[jax.Array]:
    """Sums over columns to begin with, part by part."""
    empty = jnp.zeros((GROUP_ROWS, program.elements), jnp.float32)
    return [plgpu.layout_cast(empty, BLOCK) for _ in program.parts]


def per_row(value: float) -> jax.Array:
    """A number of each row, the same for all."""
    return plgpu.layout_cast(jnp.full((GROUP_ROWS,), value, jnp.float32), OF_ROWS)


def across(x: jax.Array, columns: int) -> jax.Array:
    """A number of each row, for all columns."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (GROUP_ROWS, columns), [0]), BLOCK)


def along(x: jax.Array) -> jax.Array:
    """A number of each column, for all rows."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (GROUP_ROWS, *x.shape), [1]), BLOCK)


def write(program: Program, sums: Sequence[jax.Array], target: Ref) -> None:
    """Put sums into shared memory, rounded."""
    for part, x in enumerate(sums):
        target[part] = x.astype(program.dtype)


def total_of(met: tuple[list[Ints], list[Ints]]) -> Ints:
    """Chunks that a tile meets."""
    return math.prod(met[1])


def split_work(
    program: Program, warpgroup: Ints, multiply: Callable[[], None], copy: Callable[[], None]
) -> None:
    """Have the last warpgroup copy and the others multiply, with registers to match."""
    multiplying = program.config.warpgroups
    # With two that multiply, each thread of the three has 168 registers to begin with.
    pair = multiplying == 2

    @pl.when(warpgroup < multiplying)
    def _() -> None:
        if pair:
            plgpu.set_max_registers(_MULTIPLYING, action="increase")
        multiply()

    @pl.when(warpgroup == multiplying)
    def _() -> None:
        if pair:
            plgpu.set_max_registers(_COPYING, action="decrease")
        copy()
