"""The forward kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_gpu import copies, registers
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.penalty import Penalty
from natjax.kernels.backends.mosaic_gpu.program import (
    Ints,
    Place,
    Program,
    Ref,
    each_image,
    total_of,
)
from natjax.kernels.plan.pattern import HIDDEN


def forward(
    program: Program,
    has_table: bool,
    query: Ref,
    key: Ref,
    value: Ref,
    table: Ref,
    kind: Ref,
    reach: Ref,
    out: Ref,
    lse: Ref,
    *,
    rows: list[Ref],
    arrived: Ref,
    columns: list[Ref],
    full: list[Ref],
    free: list[Ref],
    turns: Ref = None,
    stored: Ref = None,
    left: Ref = None,
) -> None:
    """The output of a tile of queries and its log-sum-exp.

    Logits are in units of log2(e), so that exp2 is all they need.
    """
    (queries,) = rows
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
    pair = program.config.warpgroups == 2

    def take_turns() -> None:
        """Let one warpgroup have the tensor cores while the other has its exponentials."""
        if pair:
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

    def multiply() -> None:
        tile = penalty.of_tile(first)
        if kept_here is not None:
            plgpu.barrier_wait(kept_here)
        if pair:
            pl.when(warpgroup == 1)(take_turns)
        each_image(program, first, functools.partial(multiply_image, tile))
        if pair:
            pl.when(warpgroup == 0)(take_turns)

    def multiply_image(tile: Any, before: Ints, place: Place) -> None:
        copies.fetch_rows(
            program,
            query,
            queries.at[warpgroup],
            arrived.at[warpgroup],
            place,
            program.heads,
            warpgroup,
        )
        plgpu.barrier_wait(arrived.at[warpgroup])

        def step(turn: Ints, carry: Any) -> Any:
            sums, top, weight = carry
            chunk, turn = program.chunk(place, met, turn), before * total + turn
            slot = lax.rem(turn, stages)
            plgpu.barrier_wait(keys.full.at[slot])
            products = registers.product(
                program, queries.at[warpgroup], keys.memory.at[slot], take_turns
            )
            keys.release(turn)
            logits = penalty.exponents(
                products, tile, place, place.head, chunk, warpgroup, select=True
            )
            new = jnp.maximum(top, logits.max(axis=1))
            shrink = jnp.exp2(top - new)
            weights = jnp.exp2(logits - registers.across(new, program.columns))
            weight = weight * shrink + weights.sum(axis=1)
            sums = [x * registers.across(shrink, program.elements) for x in sums]
            take_turns()
            plgpu.barrier_wait(values.full.at[slot])
            own = None if left is None else left.at[warpgroup]
            sums = registers.accumulate(program, sums, weights, values.memory.at[slot], own)
            values.release(turn)
            return sums, new, weight

        begin = registers.zeros(program), registers.per_row(HIDDEN), registers.per_row(0.0)
        sums, top, weight = lax.fori_loop(0, total, step, begin)
        sums = [x / registers.across(weight, program.elements) for x in sums]
        registers.write(program, sums, queries.at[warpgroup])
        copies.store_rows(program, queries.at[warpgroup], out, place, program.heads, warpgroup)
        own_rows = pl.ds(warpgroup * GROUP_ROWS, GROUP_ROWS)
        ends = (top + jnp.log2(weight)) * (1 / LOG2_E)
        plgpu.store(lse.at[place.image, place.head, place.tile, own_rows], ends, optimized=False)

    def prepare() -> None:
        if kept_here is not None:
            penalty.fetch(first, first.head, kept_here)

    copies.split_work(program, warpgroup, multiply, (keys, values), prepare)
