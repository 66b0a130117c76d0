"""The kernels of the unfused ops, and those of their gradients.

Slots of an image are one dimension: of all its queries, heads and window slots, in this order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from natjax.kernels.backends.mosaic_gpu import registers, work
from natjax.kernels.backends.mosaic_gpu.memory import Memory
from natjax.kernels.backends.mosaic_gpu.program import Program, Ref
from natjax.kernels.backends.mosaic_gpu.unfused.scattered import NOWHERE, gather, scatter
from natjax.kernels.backends.mosaic_gpu.unfused.slots import Slots
from natjax.kernels.backends.mosaic_gpu.walk import Turn
from natjax.kernels.backends.mosaic_gpu.work import Work
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
    memory: Memory,
) -> None:
    """The logits of a tile of queries; slots without a key stay as they are.

    ``parts`` is what queries add to a place among the slots, in the order of tiles.
    """

    def multiply(own: Work) -> None:
        place, (keys,) = own.place, own.streams
        (queries,) = own.fetch_rows(program.heads, query)
        slots = Slots(own)
        of_rows = slots.of_rows(parts)

        def step(turn: Turn, carry: None) -> None:
            chunk = own.chunk(turn)
            products = registers.product(program, queries, keys.wait(turn))
            keys.release(turn)
            found = products * program.scale
            places = slots.of_chunk(of_rows, place.head, chunk)
            if has_table:
                added = own.penalty.block(own.kind, place.head, chunk.number, own.warpgroup)
                found = found + added
                places = jnp.where(added > HIDDEN / 2, places, NOWHERE)
            else:
                places = slots.seen(places, chunk)
            scatter(program, logits.at[place.image], places, found, slots.count)

        own.over(step, None)

    work.of_queries(program, has_table, (key,), (table, kind, reach), memory, multiply)


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
    memory: Memory,
) -> None:
    """For each query of a tile, the sum over its window of weight times value.

    ``parts`` is as in `qk`; ``windows`` and ``whole`` are those of `Layout`.
    """

    def multiply(own: Work) -> None:
        (values,), slots = own.streams, Slots(own)
        of_rows = slots.of_rows(parts)

        def step(turn: Turn, sums: Any) -> Any:
            chunk = own.chunk(turn)
            places = slots.seen(slots.of_chunk(of_rows, own.place.head, chunk), chunk)
            found = gather(program, weights.at[own.place.image], places)
            sums = own.accumulate(sums, found, values.wait(turn))
            values.release(turn)
            return sums

        sums = own.over(step, registers.zeros(program))
        own.store_rows(program.heads, out, [x * program.scale for x in sums])

    work.of_queries(program, False, (value,), (windows, whole, reach), memory, multiply)


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
    memory: Memory,
) -> None:
    """For each key of a tile, the sum over the queries that see it of weight times what they have.

    Rows are keys, columns the queries that see them. ``parts`` is what keys add to a place among
    the slots, in the order of tiles; ``query_parts``, what queries add, as scalars.
    """

    def multiply(own: Work) -> None:
        (queries,), slots = own.streams, Slots(own)
        of_rows = slots.of_rows(parts)

        def places_of(turn: Turn) -> jax.Array:
            begins = registers.across(of_rows + slots.of_head(own.head(turn)), program.columns)
            places = begins + registers.along(own.scalars(0, turn))
            return slots.seen(places, own.chunk(turn))

        def step(turn: Turn, sums: Any) -> Any:
            columns = queries.wait(turn)
            found = gather(program, weights.at[own.place.image], places_of(turn))
            sums = own.accumulate(sums, found, columns)
            queries.release(turn)
            return sums

        sums = own.over_heads(step, registers.zeros(program))
        own.store_rows(program.kv_heads, out, [x * program.scale for x in sums])

    # What queries add is the same for all images and heads.
    sources, plan = ((of_queries, query_parts),), (windows, whole, reach)
    work.of_keys(program, False, sources, plan, memory, multiply, shared=True)
