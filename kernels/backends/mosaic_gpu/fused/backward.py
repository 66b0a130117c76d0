"""The kernels of the backward pass.

Weights are computed again from the log-sum-exp of each query. ``delta`` of a query is the sum of
its output times the gradient of that, less the gradient of the log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu import copies, registers, work
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.memory import Memory
from natjax.kernels.backends.mosaic_gpu.penalty import Penalty
from natjax.kernels.backends.mosaic_gpu.program import BLOCK, Ints, Program, Ref
from natjax.kernels.backends.mosaic_gpu.walk import Turn, Walk
from natjax.kernels.backends.mosaic_gpu.work import Work
from natjax.kernels.plan.blocks import unravel


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
    memory: Memory,
) -> None:
    """The gradient of a tile of queries. ``lse`` is in units of log2(e), in the order of tiles."""

    def multiply(own: Work) -> None:
        keys, values = own.streams
        queries, douts = own.fetch_rows(program.heads, query, dout)
        ends, deltas = (copies.load_scalars(x, own.place, own.warpgroup) for x in (lse, delta))

        def step(turn: Turn, sums: Any) -> Any:
            own_keys = keys.wait(turn)
            products = registers.product(program, queries, own_keys)
            logits = own.exponents(products, own.chunk(turn), own.place.head)
            weights = jnp.exp2(logits - registers.across(ends, program.columns))
            dweights = registers.product(program, douts, values.wait(turn))
            values.release(turn)
            dlogits = weights * (dweights - registers.across(deltas, program.columns))
            sums = own.accumulate(sums, dlogits, own_keys)
            keys.release(turn)
            return sums

        sums = own.over(step, registers.zeros(program))
        own.store_rows(program.heads, dq, [x * program.scale for x in sums])

    work.of_queries(program, has_table, (key, value), (table, kind, reach), memory, multiply)


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
    memory: Memory,
) -> None:
    """The gradients of a tile of keys and of their values.

    Rows are keys, columns the queries that see them. ``lse``, in units of log2(e), and ``delta``
    are scalars, which come with the columns.
    """

    def multiply(own: Work) -> None:
        queries, douts = own.streams
        keys, values = own.fetch_rows(program.kv_heads, key, value)

        def of_columns(operand: int, turn: Turn) -> jax.Array:
            return registers.along(own.scalars(operand, turn))

        def step(turn: Turn, carry: Any) -> Any:
            dkeys, dvalues = carry
            own_queries = queries.wait(turn)
            products = registers.product(program, keys, own_queries)
            logits = own.exponents(products, own.chunk(turn), own.head(turn))
            weights = jnp.exp2(logits - of_columns(0, turn))
            own_douts = douts.wait(turn)
            dvalues = own.accumulate(dvalues, weights, own_douts)
            dweights = registers.product(program, values, own_douts)
            dlogits = weights * (dweights - of_columns(1, turn))
            douts.release(turn)
            dkeys = own.accumulate(dkeys, dlogits, own_queries)
            queries.release(turn)
            return dkeys, dvalues

        begin = registers.zeros(program), registers.zeros(program)
        dkeys, dvalues = own.over_heads(step, begin)
        own.store_rows(program.kv_heads, dk, [x * program.scale for x in dkeys])
        own.store_rows(program.kv_heads, dv, dvalues, 1)

    sources = (query, lse), (dout, delta)
    work.of_keys(program, has_table, sources, (table, kind, reach), memory, multiply)


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
    memory: Memory,
) -> None:
    """The gradients of the blocks of one kind and chunk, summed over tiles and images.

    The block of the table is loaded once; what goes through the ring are the tiles of the kind in
    all images, one tile after the other, of which ``splits`` blocks of threads have a part each.

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
      memory: shared memory and barriers; rows of all warpgroups go through the ring as well.
    """
    warpgroup = lax.axis_index("warpgroup")
    groups = program.config.warpgroups
    kinds, chunks = table.shape[1:3]
    number = lax.axis_index("block")
    split, number = number % splits, number // splits
    chunk_number, number = number % chunks, number // chunks
    kind, head = number % kinds, number // kinds
    begin = begins[kind]
    items = (begins[kind + 1] - begin) * batch
    walk = Walk((0,), ((items - split + splits - 1) // splits,))
    penalty = Penalty(program, table, order, True)

    def at(turn: Turn) -> Any:
        item = turn.number * splits + split
        return program.place(order[begin + item // batch], head, item % batch)

    def fetch(turn: Turn, slot: Ints, barrier: Ref) -> None:
        place, own_head = at(turn), head // program.groups
        for source, target in zip((query, dout), memory.rows, strict=True):
            for group in range(groups):
                own = target.at(slot * groups + group)
                copies.fetch_rows(
                    program, source, own, barrier, place, program.heads, jnp.int32(group)
                )
        index = unravel(chunk_number, [axis.num_chunks for axis in program.layout.blocks.axes])
        chunk = program.chunk(place, index)
        for source, target in zip((key, value), memory.columns, strict=True):
            own = target.at(slot)
            copies.fetch_columns(
                program, source, own, barrier, place, chunk, own_head, program.kv_heads
            )

    (full,), (free,) = memory.full, memory.free
    stream = copies.Stream(program.config.num_stages, walk, memory.columns[0], full, free, fetch)

    def multiply() -> None:
        added = penalty.block(kind, head, chunk_number, warpgroup)

        def step(turn: Turn, sum_so_far: jax.Array) -> jax.Array:
            place = at(turn)
            ends, deltas = (copies.load_scalars(x, place, warpgroup) for x in (lse, delta))
            keys, slot = stream.wait(turn), stream.slot(turn.number)
            values = memory.columns[1].at(slot).flat
            queries, douts = (x.at(slot * groups + warpgroup).flat for x in memory.rows)
            products = registers.product(program, queries, keys)
            dweights = registers.product(program, douts, values)
            stream.release(turn)
            logits = products * penalty.factor + added
            weights = jnp.exp2(logits - registers.across(ends, program.columns))
            return sum_so_far + weights * (dweights - registers.across(deltas, program.columns))

        empty = jnp.zeros((GROUP_ROWS, program.columns), jnp.float32)
        result = walk.over(jnp.int32(0), step, plgpu.layout_cast(empty, BLOCK))
        own = pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)
        target = sums.at[split, head, kind, chunk_number, own]
        plgpu.store(target, result, optimized=False)

    copies.split_work(program, warpgroup, multiply, [stream])
