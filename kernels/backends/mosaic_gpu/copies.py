"""Copies between the memory of the device and shared memory, and the ring of chunks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.program import (
    COPYING,
    MULTIPLYING,
    OF_ROWS,
    Chunk,
    Ints,
    Place,
    Program,
    Ref,
    Tokens,
)
from natjax.kernels.backends.mosaic_gpu.walk import Turn, Walk
from natjax.kernels.plan.blocks import unravel


def _row_box(
    program: Program, place: Place, warpgroup: Ints, number: int, lines: int
) -> tuple[Any, ...]:
    """A box of so many lines of a warpgroup's rows.

    One that is not in the array stands at its end.

    Returns:
      The number of its first line, its first place in lines, and whether it is in the array: None
      where all boxes are.
    """
    tile, places = program.layout.tile, program.layout.places
    row = (warpgroup * program.row_lines + number * lines) * program.row_line
    within = unravel(row, tile)
    positions = [f + i for f, i in zip(place.first, within, strict=True)]
    exists = None
    for axis in (0, 1):
        if places[axis] % tile[axis]:
            inside = positions[axis] < places[axis]
            exists = inside if exists is None else exists & inside
            positions[axis] = jnp.minimum(positions[axis], places[axis] - 1)
    return program.line(place, positions[0], positions[1]), positions[2], exists


def _boxes_of_parts(
    program: Program,
    array: Ref,
    shared: Tokens,
    place: Place,
    head: Ints,
    heads: int,
    box: tuple[Ints, Ints],
    shape: tuple[int, int],
    number: int,
) -> Iterator[tuple[Ref, Ref]]:
    """Where the parts of a box are, in an array of lines and in shared memory.

    Args:
      program: what the kernel is compiled for.
      array: the array.
      shared: the shared memory.
      place: the tile.
      head: whose channels.
      heads: of the array.
      box: number of its first line, and its first place in lines.
      shape: lines, and places of a line.
      number: among the boxes in shared memory.
    """
    (line, first), (lines, length) = box, shape
    for part in program.parts:
        channels = program.channels(place, head, heads, part)
        if lines > 1:
            own, target = pl.ds(line, lines), shared.boxed.at[part, number]
        else:
            own, target = line, shared.flat.at[part, pl.ds(number * length, length)]
        yield array.at[own, pl.ds(first, length), channels], target


def fetch_rows(
    program: Program,
    source: Ref,
    target: Tokens,
    barrier: Ref,
    place: Place,
    heads: int,
    warpgroup: Ints,
) -> None:
    """Copy the rows of a warpgroup into shared memory; arrives `Program.row_copies` times."""
    lines = program.fetched_lines
    shape = lines, program.row_line
    for number in range(program.row_lines // lines):
        *box, _ = _row_box(program, place, warpgroup, number, lines)
        for own, shared in _boxes_of_parts(
            program, source, target, place, place.head, heads, tuple(box), shape, number
        ):
            plgpu.copy_gmem_to_smem(own, shared, barrier)


def store_rows(
    program: Program, source: Tokens, target: Ref, place: Place, heads: int, warpgroup: Ints
) -> None:
    """Copy the rows of a warpgroup out of shared memory, those that there are."""
    plgpu.commit_smem()
    lines = program.stored_lines
    shape = lines, program.row_line

    def store(box: tuple[Ints, Ints], number: int) -> None:
        for own, shared in _boxes_of_parts(
            program, target, source, place, place.head, heads, box, shape, number
        ):
            plgpu.copy_smem_to_gmem(shared, own)

    for number in range(program.row_lines // lines):
        *box, exists = _row_box(program, place, warpgroup, number, lines)
        if exists is None:
            store(tuple(box), number)
        else:
            # Pallas' interpreter knows no predicate of a copy.
            pl.when(exists)(functools.partial(store, tuple(box), number))
    plgpu.wait_smem_to_gmem(0)


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
    target: Tokens,
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
    at_once = program.column_lines
    boxes = itertools.product(range(frames), range(0, lines, at_once))
    for number, (frame, first) in enumerate(boxes):
        box = _column_line(program, place, chunk, frame, first), chunk.start[2]
        for own, shared in _boxes_of_parts(
            program, source, target, place, head, heads, box, (at_once, length), number
        ):
            plgpu.copy_gmem_to_smem(own, shared, barrier)


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
    """Copy a number of each column of a chunk into shared memory; arrives once.

    Places past the end of an axis are zeros.
    """
    row = program.scalars_row(place, head, heads)
    box = (pl.ds(s, n) for s, n in zip(chunk.start, program.layout.chunk, strict=True))
    plgpu.copy_gmem_to_smem(source.at[row, *box], target, barrier)


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
      stages: places of the ring.
      walk: the chunks.
      memory: shared memory, of each place of the ring.
      full: barriers that a chunk has arrived.
      free: barriers that all who multiply are done with it; None if one warpgroup is all there is.
      fetch: a function of turn, number of a place in the ring and barrier, that begins the copies
        of a chunk.
    """

    stages: int
    walk: Walk
    memory: Tokens
    full: Ref
    free: Ref
    fetch: Callable[[Turn, Ints, Ref], None]

    def copy(self, turn: Turn) -> None:
        """Begin the copies of the chunk of a turn into its place, which is free."""
        slot = self.slot(turn.number)
        self.fetch(turn, slot, self.full.at[slot])

    def wait(self, turn: Turn) -> Ref:
        """Wait for the chunk of a turn; where it is."""
        slot = self.slot(turn.number)
        plgpu.barrier_wait(self.full.at[slot])
        return self.memory.at(slot).flat

    def release(self, turn: Turn) -> None:
        """Say that the warpgroup at hand is done with the chunk of a turn.

        Where it copies for itself, it begins the copies of the chunk that takes its place.
        """
        if self.free is not None:
            plgpu.barrier_arrive(self.free.at[self.slot(turn.number)])
            return
        following = self.walk.after(turn, self.stages)

        @pl.when(following.number < self.walk.total)
        def _() -> None:
            # One thread copies; all of the warpgroup must have read what was there.
            plgpu.commit_smem()
            self.copy(following)

    def pass_by(self, number: Ints) -> None:
        """Leave the chunk of a turn to the other warpgroup."""
        slot = self.slot(number)
        plgpu.barrier_wait(self.full.at[slot])
        plgpu.barrier_arrive(self.free.at[slot])

    def slot(self, number: Ints) -> Ints:
        """The place in the ring of the chunk of a turn."""
        return lax.rem(number, jnp.int32(self.stages))


def streams_of_images(
    program: Program,
    first: Place,
    walk: Walk,
    sources: Sequence[Ref],
    columns: Sequence[Tokens],
    full: Sequence[Ref],
    free: Sequence[Ref],
) -> list[Stream]:
    """Streams of keys, or of values, of one image after the other.

    Args:
      program: what the kernel is compiled for.
      first: the tile in the first image.
      walk: the chunks that it meets, in each image.
      sources: lines of each operand.
      columns: shared memory of each.
      full: barriers of each.
      free: barriers of each.
    """
    head = first.head // program.groups

    def fetch(source: Ref, memory: Tokens, turn: Turn, slot: Ints, barrier: Ref) -> None:
        place = dataclasses.replace(first, image=first.image + turn.slab)
        chunk = program.chunk(first, turn.index)
        target = memory.at(slot)
        fetch_columns(program, source, target, barrier, place, chunk, head, program.kv_heads)

    stages, refs = program.config.num_stages, zip(sources, columns, full, free, strict=True)
    return [
        Stream(stages, walk, memory, *barriers, functools.partial(fetch, source, memory))
        for source, memory, *barriers in refs
    ]


def split_work(
    program: Program,
    warpgroup: Ints,
    multiply: Callable[[], None],
    streams: Sequence[Stream],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Have some warpgroups multiply, and chunks be copied: by the last, or by the one there is.

    Args:
      program: what the kernel is compiled for.
      warpgroup: the one at hand.
      multiply: what those that multiply do.
      streams: what is copied, all of the same chunks.
      prepare: further copies, before those.
    """
    walk = streams[0].walk
    if not program.config.copying:
        prepare()
        # The first chunks, as many as the ring has places.
        _copy_turns(streams, jnp.minimum(program.config.num_stages, walk.total))
        multiply()
        return
    multiplying = program.config.warpgroups
    # Of three warpgroups, each thread has 168 registers to begin with.
    pair = multiplying == 2

    @pl.when(warpgroup < multiplying)
    def _() -> None:
        if pair:
            plgpu.set_max_registers(MULTIPLYING, action="increase")
        multiply()

    @pl.when(warpgroup == multiplying)
    def _() -> None:
        if pair:
            plgpu.set_max_registers(COPYING, action="decrease")
        prepare()
        _copy_turns(streams, walk.total, waits=True)


def _copy_turns(streams: Sequence[Stream], turns: Ints, *, waits: bool = False) -> None:
    """Copy one chunk after the other into the ring, if need be as places become free."""

    def step(number: Ints, turn: Turn) -> Turn:
        for stream in streams:
            if waits:

                @pl.when(number >= stream.stages)
                def _(stream: Stream = stream) -> None:
                    plgpu.barrier_wait(stream.free.at[stream.slot(turn.number)])

            stream.copy(turn)
        return streams[0].walk.after(turn)

    lax.fori_loop(0, turns, step, streams[0].walk.start())
