"""What the kernels have in common: a tile of rows, and the chunks of columns that go by.

A kernel says what a multiplying warpgroup does with its rows in one image; here is who else works
for it, and on what.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu import copies, registers
from natjax.kernels.backends.mosaic_gpu.copies import Stream
from natjax.kernels.backends.mosaic_gpu.memory import Memory
from natjax.kernels.backends.mosaic_gpu.penalty import Penalty
from natjax.kernels.backends.mosaic_gpu.program import Chunk, Ints, Place, Program, Ref
from natjax.kernels.backends.mosaic_gpu.walk import Turn, Walk

# What is added to logits or the windows of rows, the kind of each tile or its window, and which
# chunks each tile meets; see `run.plan_of`.
type Plan = tuple[Ref, Ref, Ref]


@dataclasses.dataclass(frozen=True)
class Work:
    """A multiplying warpgroup and its rows of a tile, in one image.

    Attributes:
      program: what the kernel is compiled for.
      memory: shared memory and barriers.
      walk: the chunks that the tile meets.
      own: those along the outermost axis that the warpgroup's rows meet; None for all.
      streams: the operands of which they are chunks.
      penalty: what is added to logits.
      kind: of the tile, where there is a table.
      warpgroup: which one.
      place: the tile.
      slab: images before this one.
    """

    program: Program
    memory: Memory
    walk: Walk
    own: tuple[Ints, Ints] | None
    streams: Sequence[Stream]
    penalty: Penalty
    kind: Any
    warpgroup: Ints
    place: Place
    slab: Ints

    def fetch_rows(self, heads: int, *sources: Ref) -> list[Ref]:
        """Copy the rows of operands into shared memory; where they are, once they have arrived."""
        arrived = self.memory.arrived.at[self.warpgroup]
        targets = [x.at(self.warpgroup) for x in self.memory.rows]
        for source, target in zip(sources, targets, strict=True):
            copies.fetch_rows(
                self.program, source, target, arrived, self.place, heads, self.warpgroup
            )
        plgpu.barrier_wait(arrived)
        return [target.flat for target in targets]

    def store_rows(
        self, heads: int, target: Ref, sums: Sequence[jax.Array], number: int = 0
    ) -> None:
        """Write sums to the rows of a result, by way of the shared memory of an operand's rows.

        Where rows are, there and in the result, is found again: kept from when they were fetched,
        it took registers that sums need in between, which then spilled.
        """
        old = self.place
        image, head, tile, warpgroup = lax.optimization_barrier(
            (old.image, old.head, old.tile, self.warpgroup)
        )
        place = self.program.place(tile, head, image)
        memory = self.memory.rows[number].at(warpgroup)
        registers.write(self.program, sums, memory.flat)
        copies.store_rows(self.program, memory, target, place, heads, warpgroup)

    def over(
        self,
        step: Callable[[Turn, Any], Any],
        carry: Any,
        passing: Callable[[], None] = lambda: None,
    ) -> Any:
        """Go over the chunks of the image; see `Walk.over`.

        Args:
          step: what is done with each.
          carry: what the first turn finds.
          passing: what is done besides where a chunk is the other warpgroup's alone.
        """
        return self._over(step, passing, self.slab, carry)

    def over_heads(self, step: Callable[[Turn, Any], Any], carry: Any) -> Any:
        """Go over the chunks of all query heads of a key head."""
        body = functools.partial(self._over, step, lambda: None)
        if self.program.groups == 1:
            return body(jnp.int32(0), carry)
        return lax.fori_loop(0, self.program.groups, body, carry)

    def _over(
        self, step: Callable[[Turn, Any], Any], passing: Callable[[], None], slab: Ints, carry: Any
    ) -> Any:
        def pass_by(number: Ints) -> None:
            passing()
            for stream in self.streams:
                stream.pass_by(number)

        return self.walk.over(slab, step, carry, self.own, pass_by)

    def chunk(self, turn: Turn) -> Chunk:
        """The chunk of a turn."""
        return self.program.chunk(self.place, turn.index)

    def head(self, turn: Turn) -> Ints:
        """The query head of a turn, where rows are keys."""
        return self.program.head_of_group(self.place, turn)

    def scalars(self, operand: int, turn: Turn) -> jax.Array:
        """The number of each column that came with a chunk of an operand."""
        slot = self.streams[operand].slot(turn.number)
        return registers.scalars(self.program, self.memory.scalars[operand].at[slot])

    def exponents(
        self, products: jax.Array, chunk: Chunk, head: Ints, *, select: bool = False
    ) -> jax.Array:
        """The logits of a block of products; see `Penalty.exponents`."""
        return self.penalty.exponents(
            products, self.kind, self.place, head, chunk, self.warpgroup, select=select
        )

    def accumulate(
        self, sums: Sequence[jax.Array], weights: jax.Array, columns: Ref
    ) -> list[jax.Array]:
        """Add to sums the weighted sum of columns; see `registers.accumulate`."""
        left = None if self.memory.left is None else self.memory.left.at[self.warpgroup]
        return registers.accumulate(self.program, sums, weights, columns, left)


def of_queries(
    program: Program,
    has_table: bool,
    sources: Sequence[Ref],
    plan: Plan,
    memory: Memory,
    body: Callable[[Work], None],
) -> None:
    """Work on a tile of queries, in one image after the other.

    Args:
      program: what the kernel is compiled for.
      has_table: whether there is a table.
      sources: lines of keys, of values, or of both.
      plan: who sees whom.
      memory: shared memory and barriers.
      body: what a multiplying warpgroup does.
    """
    table, kind, reach = plan
    warpgroup = lax.axis_index("warpgroup")
    first = program.place_of_block(program.heads)
    walk = program.walk(reach, first.tile, program.count_images(first))
    streams = copies.streams_of_images(
        program, first, walk, sources, memory.columns, memory.full, memory.free
    )
    stored, arrived = memory.stored or (None, None)
    penalty = Penalty(program, table, kind, has_table, stored)

    def multiply() -> None:
        of_tile = _of_tile(program, memory, walk, streams, penalty, reach, warpgroup, first)
        if arrived is not None:
            plgpu.barrier_wait(arrived)

        def image(before: Ints) -> None:
            place = dataclasses.replace(first, image=first.image + before)
            body(dataclasses.replace(of_tile, place=place, slab=before))

        if program.images == 1:
            body(of_tile)
        else:
            pl.loop(0, walk.slabs)(image)

    def prepare() -> None:
        if arrived is not None:
            penalty.fetch(first, first.head, arrived)

    copies.split_work(program, warpgroup, multiply, streams, prepare)


def of_keys(
    program: Program,
    has_table: bool,
    sources: Sequence[tuple[Ref, Ref]],
    plan: Plan,
    memory: Memory,
    body: Callable[[Work], None],
    *,
    shared: bool = False,
) -> None:
    """Work on a tile of keys, for one query head after the other of those that share it.

    Args:
      program: what the kernel is compiled for.
      has_table: whether there is a table.
      sources: of each operand, lines of what queries have, and numbers that come with them.
      plan: who sees whom.
      memory: shared memory and barriers.
      body: what a multiplying warpgroup does.
      shared: whether the numbers are the same for all images and heads.
    """
    table, kind, reach = plan
    warpgroup = lax.axis_index("warpgroup")
    place = program.place_of_block(program.kv_heads)
    walk = program.walk(reach, place.tile, program.groups)
    penalty = Penalty(program, table, kind, has_table)

    def fetch(operand: int, turn: Turn, slot: Ints, barrier: Ref) -> None:
        source, numbers = sources[operand]
        target, own = memory.columns[operand].at(slot), memory.scalars[operand].at[slot]
        head, chunk = program.head_of_group(place, turn), program.chunk(place, turn.index)
        copies.fetch_columns(program, source, target, barrier, place, chunk, head, program.heads)
        of_numbers = (place, chunk, head, program.heads)
        if shared:
            of_numbers = (dataclasses.replace(place, image=0), chunk, jnp.int32(0), 1)
        copies.fetch_scalars(program, numbers, own, barrier, *of_numbers)

    refs = zip(memory.columns, memory.full, memory.free, strict=True)
    streams = [
        Stream(program.config.num_stages, walk, *own, functools.partial(fetch, operand))
        for operand, own in enumerate(refs)
    ]

    def multiply() -> None:
        body(_of_tile(program, memory, walk, streams, penalty, reach, warpgroup, place))

    copies.split_work(program, warpgroup, multiply, streams)


def _of_tile(
    program: Program,
    memory: Memory,
    walk: Walk,
    streams: Sequence[Stream],
    penalty: Penalty,
    reach: Ref,
    warpgroup: Ints,
    place: Place,
) -> Work:
    """The work on a tile in the first of its images."""
    own, kind = program.own_chunks(reach, place.tile, warpgroup), penalty.of_tile(place)
    return Work(program, memory, walk, own, streams, penalty, kind, warpgroup, place, jnp.int32(0))
