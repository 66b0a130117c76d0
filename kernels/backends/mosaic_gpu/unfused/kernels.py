"""The kernels of the unfused ops, and those of their gradients.

Slots of an image are one dimension: of all its queries, heads and window slots, in this order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu import copies, registers
from natjax.kernels.backends.mosaic_gpu.penalty import Penalty
from natjax.kernels.backends.mosaic_gpu.program import (
    OF_COLUMNS,
    Ints,
    Program,
    Ref,
    total_of,
)
from natjax.kernels.backends.mosaic_gpu.unfused.scattered import NOWHERE, gather, scatter
from natjax.kernels.backends.mosaic_gpu.unfused.slots import Slots
from natjax.kernels.plan.pattern import HIDDEN


def qk(
    program: Program,
    has_table: bool,
    query: Ref,
    key: Ref,
    parts: Ref,
    table: Ref,
    kind: Ref,
    reach: Ref,
    logits: Ref,
    *,
    rows: list[Ref],
    arrived: Ref,
    columns: list[Ref],
    full: list[Ref],
    free: list[Ref],
) -> None:
    """The logits of a tile of queries; slots without a key stay as they are.

    ``parts`` is what queries add to a place among the slots, in the order of tiles.
    """
    warpgroup = lax.axis_index("warpgroup")
    place = program.place_of_block(program.heads)
    met = program.met(reach, place.tile)
    total = total_of(met)
    (keys,) = copies.streams_of_images(
        program, place, met, place.head // program.groups, (key,), columns, full, free
    )
    penalty = Penalty(program, table, kind, has_table)
    slots = Slots(program, penalty, place, warpgroup)
    stages = jnp.int32(program.config.num_stages)

    def multiply() -> None:
        queries, here = rows[0].at[warpgroup], arrived.at[warpgroup]
        copies.fetch_rows(program, query, queries, here, place, program.heads, warpgroup)
        plgpu.barrier_wait(here)
        of_rows, tile = slots.of_rows(parts), penalty.of_tile(place)

        @pl.loop(0, total)
        def _(turn: Ints) -> None:
            slot = lax.rem(turn, stages)
            chunk = program.chunk(place, met, turn)
            plgpu.barrier_wait(keys.full.at[slot])
            products = registers.product(program, queries, keys.memory.at[slot])
            keys.release(turn)
            found = products * program.scale
            places = slots.of_chunk(of_rows, place.head, chunk)
            if has_table:
                added = penalty.block(tile, place.head, chunk.number, warpgroup)
                found = found + added
                places = jnp.where(added > HIDDEN / 2, places, NOWHERE)
            else:
                places = slots.seen(places, chunk)
            scatter(program, logits.at[place.image], places, found, slots.count)

    copies.split_work(program, warpgroup, multiply, (keys,))


def av(
    program: Program,
    weights: Ref,
    value: Ref,
    parts: Ref,
    windows: Ref,
    whole: Ref,
    reach: Ref,
    out: Ref,
    *,
    rows: list[Ref],
    columns: list[Ref],
    full: list[Ref],
    free: list[Ref],
    left: Ref = None,
) -> None:
    """For each query of a tile, the sum over its window of weight times value.

    ``parts`` is as in `qk`; ``windows`` and ``whole`` are those of `Layout`.
    """
    warpgroup = lax.axis_index("warpgroup")
    place = program.place_of_block(program.heads)
    met = program.met(reach, place.tile)
    total = total_of(met)
    (values,) = copies.streams_of_images(
        program, place, met, place.head // program.groups, (value,), columns, full, free
    )
    slots = Slots(program, Penalty(program, windows, whole, False), place, warpgroup)
    stages = jnp.int32(program.config.num_stages)

    def multiply() -> None:
        of_rows = slots.of_rows(parts)
        own = None if left is None else left.at[warpgroup]

        def step(turn: Ints, sums: Any) -> Any:
            slot = lax.rem(turn, stages)
            chunk = program.chunk(place, met, turn)
            places = slots.seen(slots.of_chunk(of_rows, place.head, chunk), chunk)
            found = gather(program, weights.at[place.image], places)
            plgpu.barrier_wait(values.full.at[slot])
            sums = registers.accumulate(program, sums, found, values.memory.at[slot], own)
            values.release(turn)
            return sums

        sums = lax.fori_loop(0, total, step, registers.zeros(program))
        target = rows[0].at[warpgroup]
        registers.write(program, [x * program.scale for x in sums], target)
        copies.store_rows(program, target, out, place, program.heads, warpgroup)

    copies.split_work(program, warpgroup, multiply, (values,))


def av_transposed(
    program: Program,
    weights: Ref,
    of_queries: Ref,
    parts: Ref,
    query_parts: Ref,
    windows: Ref,
    whole: Ref,
    reach: Ref,
    out: Ref,
    *,
    rows: list[Ref],
    columns: list[Ref],
    scalars: Ref,
    full: list[Ref],
    free: list[Ref],
    left: Ref = None,
) -> None:
    """For each key of a tile, the sum over the queries that see it of weight times what they have.

    Rows are keys, columns the queries that see them. ``parts`` is what keys add to a place among
    the slots, in the order of tiles; ``query_parts``, what queries add, as lines of scalars.
    """
    warpgroup = lax.axis_index("warpgroup")
    place = program.place_of_block(program.kv_heads)
    met = program.met(reach, place.tile)
    total = total_of(met) * program.groups
    slots = Slots(program, Penalty(program, windows, whole, False), place, warpgroup)
    stages = jnp.int32(program.config.num_stages)
    # The same for all images and heads.
    shared, first = dataclasses.replace(place, image=0), jnp.int32(0)

    def fetch(turn: Ints, memory: Ref, barrier: Ref) -> None:
        head, chunk = program.chunk_of_group(place, met, turn)
        numbers = scalars.at[lax.rem(turn, stages)]
        copies.fetch_columns(
            program, of_queries, memory, barrier, place, chunk, head, program.heads
        )
        copies.fetch_scalars(program, query_parts, numbers, barrier, shared, chunk, first, 1)

    queries = copies.Stream(program, columns[0], full[0], free[0], total, fetch)

    def multiply() -> None:
        of_rows = slots.of_rows(parts)
        own = None if left is None else left.at[warpgroup]

        def step(turn: Ints, sums: Any) -> Any:
            slot = lax.rem(turn, stages)
            head, chunk = program.chunk_of_group(place, met, turn)
            plgpu.barrier_wait(queries.full.at[slot])
            of_columns = plgpu.load(scalars.at[slot], layout=OF_COLUMNS, optimized=False)
            begins = registers.across(of_rows + slots.of_head(head), program.columns)
            places = slots.seen(begins + registers.along(of_columns), chunk)
            found = gather(program, weights.at[place.image], places)
            sums = registers.accumulate(program, sums, found, queries.memory.at[slot], own)
            queries.release(turn)
            return sums

        sums = lax.fori_loop(0, total, step, registers.zeros(program))
        target = rows[0].at[warpgroup]
        registers.write(program, [x * program.scale for x in sums], target)
        copies.store_rows(program, target, out, place, program.kv_heads, warpgroup)

    copies.split_work(program, warpgroup, multiply, (queries,))
