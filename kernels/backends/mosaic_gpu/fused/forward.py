"""The forward kernel."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_gpu import registers, work
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.memory import Memory
from natjax.kernels.backends.mosaic_gpu.program import Program, Ref
from natjax.kernels.backends.mosaic_gpu.walk import Turn
from natjax.kernels.backends.mosaic_gpu.work import Work
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
    memory: Memory,
) -> None:
    """The output of a tile of queries and its log-sum-exp.

    Logits are in units of log2(e), so that exp2 is all they need.
    """
    pair = program.config.warpgroups == 2

    def take_turns() -> None:
        """Let one warpgroup have the tensor cores while the other has its exponentials."""
        if pair:
            plgpu.barrier_arrive(memory.turns)
            plgpu.barrier_wait(memory.turns)

    def passing() -> None:
        take_turns()
        take_turns()

    def multiply(own: Work) -> None:
        place, (keys, values) = own.place, own.streams
        (queries,) = own.fetch_rows(program.heads, query)

        def step(turn: Turn, carry: Any) -> Any:
            sums, top, weight = carry
            products = registers.product(program, queries, keys.wait(turn), take_turns)
            keys.release(turn)
            logits = own.exponents(products, own.chunk(turn), place.head, select=True)
            new = jnp.maximum(top, logits.max(axis=1))
            shrink = jnp.exp2(top - new)
            weights = jnp.exp2(logits - registers.across(new, program.columns))
            weight = weight * shrink + weights.sum(axis=1)
            sums = [x * registers.across(shrink, program.elements) for x in sums]
            take_turns()
            sums = own.accumulate(sums, weights, values.wait(turn))
            values.release(turn)
            return sums, new, weight

        begin = registers.zeros(program), registers.per_row(HIDDEN), registers.per_row(0.0)
        if pair:
            pl.when(own.warpgroup == 1)(take_turns)
        sums, top, weight = own.over(step, begin, passing)
        if pair:
            pl.when(own.warpgroup == 0)(take_turns)
        sums = [x / registers.across(weight, program.elements) for x in sums]
        own.store_rows(program.heads, out, sums)
        rows = pl.ds(own.warpgroup * GROUP_ROWS, GROUP_ROWS)
        ends = (top + jnp.log2(weight)) * (1 / LOG2_E)
        plgpu.store(lse.at[place.image, place.head, place.tile, rows], ends, optimized=False)

    work.of_queries(program, has_table, (key, value), (table, kind, reach), memory, multiply)
