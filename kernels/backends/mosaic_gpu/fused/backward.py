"""The kernels of the backward pass.

Weights are computed again from the log-sum-exp of each query. ``delta`` of a query is the sum of
its output times the gradient of that, less the gradient of the log-sum-exp.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu import copies, registers
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.penalty import Penalty
from natjax.kernels.backends.mosaic_gpu.program import (
    BLOCK,
    OF_COLUMNS,
    Ints,
    Place,
    Program,
    Ref,
    each_image,
    total_of,
)


def dquery(
    program: Program,
    has_table: bool,
    query: Ref,
    key: Ref,
    value: Ref,
    dout: Ref,
    lse: Ref,
    delta: Ref,
    table: Ref,
    kind: Ref,
    reach: Ref,
    dq: Ref,
    *,
    rows: list[Ref],
    arrived: Ref,
    columns: list[Ref],
    full: list[Ref],
    free: list[Ref],
    stored: Ref = None,
    left: Ref = None,
) -> None:
    """The gradient of a tile of queries. ``lse`` is in units of log2(e), in the order of tiles."""
    warpgroup = lax.axis_index("warpgroup")
    first = program.place_of_block(program.heads)
    met = program.met(reach, first.tile)
    total = total_of(met)
    keys, values = copies.streams_of_images(
        program, first, met, first.head // program.groups, (key, value), columns, full, free
    )
    kept, kept_here = stored or (None, None)
    penalty = Penalty(program, table, kind, has_table, kept)
    stages = jnp.int32(program.config.num_stages)

    def multiply() -> None:
        tile = penalty.of_tile(first)
        if kept_here is not None:
            plgpu.barrier_wait(kept_here)
        each_image(program, first, functools.partial(multiply_image, tile))

    def multiply_image(tile: Any, before: Ints, place: Place) -> None:
        queries, douts = (x.at[warpgroup] for x in rows)
        for source, target in ((query, queries), (dout, douts)):
            copies.fetch_rows(
                program,
                source,
                target,
                arrived.at[warpgroup],
                place,
                program.heads,
                warpgroup,
            )
        plgpu.barrier_wait(arrived.at[warpgroup])
        ends, deltas = (copies.load_scalars(x, place, warpgroup) for x in (lse, delta))

        def step(turn: Ints, sums: Any) -> Any:
            chunk, turn = program.chunk(place, met, turn), before * total + turn
            slot = lax.rem(turn, stages)
            plgpu.barrier_wait(keys.full.at[slot])
            products = registers.product(program, queries, keys.memory.at[slot])
            logits = penalty.exponents(products, tile, place, place.head, chunk, warpgroup)
            weights = jnp.exp2(logits - registers.across(ends, program.columns))
            plgpu.barrier_wait(values.full.at[slot])
            dweights = registers.product(program, douts, values.memory.at[slot])
            values.release(turn)
            dlogits = weights * (dweights - registers.across(deltas, program.columns))
            own = None if left is None else left.at[warpgroup]
            sums = registers.accumulate(program, sums, dlogits, keys.memory.at[slot], own)
            keys.release(turn)
            return sums

        sums = lax.fori_loop(0, total, step, registers.zeros(program))
        registers.write(program, [x * program.scale for x in sums], queries)
        copies.store_rows(program, queries, dq, place, program.heads, warpgroup)

    def prepare() -> None:
        if kept_here is not None:
            penalty.fetch(first, first.head, kept_here)

    copies.split_work(program, warpgroup, multiply, (keys, values), prepare)


def dkeyvalue(
    program: Program,
    has_table: bool,
    query: Ref,
    key: Ref,
    value: Ref,
    dout: Ref,
    lse: Ref,
    delta: Ref,
    table: Ref,
    kind: Ref,
    reach: Ref,
    dk: Ref,
    dv: Ref,
    *,
    rows: list[Ref],
    arrived: Ref,
    columns: list[Ref],
    scalars: list[Ref],
    full: list[Ref],
    free: list[Ref],
    left: Ref = None,
) -> None:
    """The gradients of a tile of keys and of their values.

    Rows are keys, columns the queries that see them. ``lse``, in units of log2(e), and ``delta``
    are lines of scalars, which come with the columns.
    """
    warpgroup = lax.axis_index("warpgroup")
    place = program.place_of_block(program.kv_heads)
    met = program.met(reach, place.tile)
    total = total_of(met) * program.groups
    penalty = Penalty(program, table, kind, has_table)
    stages = jnp.int32(program.config.num_stages)
    at = functools.partial(program.chunk_of_group, place, met)

    def fetch(source: Ref, numbers: Ref, beside: Ref) -> Any:
        def begin(turn: Ints, memory: Ref, barrier: Ref) -> None:
            head, chunk = at(turn)
            own = beside.at[lax.rem(turn, stages)]
            copies.fetch_columns(
                program, source, memory, barrier, place, chunk, head, program.heads
            )
            copies.fetch_scalars(program, numbers, own, barrier, place, chunk, head, program.heads)

        return begin

    fetches = fetch(query, lse, scalars[0]), fetch(dout, delta, scalars[1])
    queries, douts = (
        copies.Stream(program, *refs, total, begin)
        for *refs, begin in zip(columns, full, free, fetches, strict=True)
    )

    def multiply() -> None:
        keys, values = (x.at[warpgroup] for x in rows)
        for source, target in ((key, keys), (value, values)):
            copies.fetch_rows(
                program,
                source,
                target,
                arrived.at[warpgroup],
                place,
                program.kv_heads,
                warpgroup,
            )
        plgpu.barrier_wait(arrived.at[warpgroup])
        tile = penalty.of_tile(place)
        own = None if left is None else left.at[warpgroup]

        def of_columns(source: Ref, slot: Ints) -> jax.Array:
            x = plgpu.load(source.at[slot], layout=OF_COLUMNS, optimized=False)
            return registers.along(x)

        def step(turn: Ints, carry: Any) -> Any:
            dkeys, dvalues = carry
            slot = lax.rem(turn, stages)
            head, chunk = at(turn)
            plgpu.barrier_wait(queries.full.at[slot])
            products = registers.product(program, keys, queries.memory.at[slot])
            logits = penalty.exponents(products, tile, place, head, chunk, warpgroup)
            weights = jnp.exp2(logits - of_columns(scalars[0], slot))
            plgpu.barrier_wait(douts.full.at[slot])
            dvalues = registers.accumulate(program, dvalues, weights, douts.memory.at[slot], own)
            dweights = registers.product(program, values, douts.memory.at[slot])
            dlogits = weights * (dweights - of_columns(scalars[1], slot))
            douts.release(turn)
            dkeys = registers.accumulate(program, dkeys, dlogits, queries.memory.at[slot], own)
            queries.release(turn)
            return dkeys, dvalues

        begin = registers.zeros(program), registers.zeros(program)
        dkeys, dvalues = lax.fori_loop(0, total, step, begin)
        registers.write(program, [x * program.scale for x in dkeys], keys)
        registers.write(program, dvalues, values)
        for source, target in ((keys, dk), (values, dv)):
            copies.store_rows(program, source, target, place, program.kv_heads, warpgroup)

    copies.split_work(program, warpgroup, multiply, (queries, douts))


def dbias(
    program: Program,
    splits: int,
    batch: int,
    query: Ref,
    key: Ref,
    value: Ref,
    dout: Ref,
    lse: Ref,
    delta: Ref,
    table: Ref,
    order: Ref,
    begins: Ref,
    sums: Ref,
    *,
    rows: list[Ref],
    columns: list[Ref],
    full: list[Ref],
    free: list[Ref],
) -> None:
    """The gradients of the blocks of one kind and chunk, summed over tiles and images.

    The block of the table is loaded once; what goes through the ring are the tiles of the kind, one
    image after the other, of which ``splits`` blocks of threads have a part each.

    Args:
      program: what the kernel is compiled for.
      splits: blocks of threads that share the tiles of a kind.
      batch: images.
      query: lines of queries.
      key: lines of keys.
      value: lines of values.
      dout: lines of gradients of the output.
      lse: of each query, in units of log2(e), in the order of tiles.
      delta: of each query, in the order of tiles.
      table: what is added to the logits of a block.
      order: tiles by kind.
      begins: where each kind begins there, and the last ends.
      sums: what is written.
      rows: shared memory for the rows of all warpgroups, for each place of the ring.
      columns: shared memory for columns.
      full: barriers of the ring.
      free: barriers of the ring.
    """
    warpgroup = lax.axis_index("warpgroup")
    groups = program.config.warpgroups
    kinds, chunks = table.shape[1:3]
    number = lax.axis_index("block")
    split, number = number % splits, number // splits
    chunk_number, number = number % chunks, number // chunks
    kind, head = number % kinds, number // kinds
    begin, count = begins[kind], begins[kind + 1] - begins[kind]
    items = count * batch
    total = (items - split + splits - 1) // splits
    penalty = Penalty(program, table, order, True)
    stages = jnp.int32(program.config.num_stages)

    def at(turn: Ints) -> Any:
        item = turn * splits + split
        tile = order[begin + item % jnp.maximum(count, 1)]
        return program.place(tile, head, item // jnp.maximum(count, 1))

    def fetch_tile(source: Ref, target: Ref) -> Any:
        def begin_copies(turn: Ints, _: Ref, barrier: Ref) -> None:
            place, slot = at(turn), lax.rem(turn, stages)
            for group in range(groups):
                memory = target.at[slot * groups + group]
                copies.fetch_rows(
                    program, source, memory, barrier, place, program.heads, jnp.int32(group)
                )

        return begin_copies

    def fetch_chunk(source: Ref) -> Any:
        def begin_copies(turn: Ints, memory: Ref, barrier: Ref) -> None:
            place, own_head = at(turn), head // program.groups
            chunk = program.chunk(place, program.met(order, 0), chunk_number)
            copies.fetch_columns(
                program, source, memory, barrier, place, chunk, own_head, program.kv_heads
            )

        return begin_copies

    fetches = (
        fetch_tile(query, rows[0]),
        fetch_tile(dout, rows[1]),
        fetch_chunk(key),
        fetch_chunk(value),
    )
    streams = [
        copies.Stream(program, *refs, total, begin)
        for *refs, begin in zip((*rows, *columns), full, free, fetches, strict=True)
    ]

    def multiply() -> None:
        added = penalty.block(kind, head, chunk_number, warpgroup)

        def step(turn: Ints, sum_so_far: jax.Array) -> jax.Array:
            slot = lax.rem(turn, stages)
            place = at(turn)
            ends, deltas = (copies.load_scalars(x, place, warpgroup) for x in (lse, delta))
            for stream in streams:
                plgpu.barrier_wait(stream.full.at[slot])
            queries, douts = (x.memory.at[slot * groups + warpgroup] for x in streams[:2])
            keys, values = (x.memory.at[slot] for x in streams[2:])
            products = registers.product(program, queries, keys)
            dweights = registers.product(program, douts, values)
            for stream in streams:
                stream.release(turn)
            logits = products * penalty.factor + added
            weights = jnp.exp2(logits - registers.across(ends, program.columns))
            return sum_so_far + weights * (dweights - registers.across(deltas, program.columns))

        empty = jnp.zeros((GROUP_ROWS, program.columns), jnp.float32)
        result = lax.fori_loop(0, total, step, plgpu.layout_cast(empty, BLOCK))
        own = pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)
        target = sums.at[split, head, kind, chunk_number, own]
        plgpu.store(target, result, optimized=False)

    copies.split_work(program, warpgroup, multiply, streams)
