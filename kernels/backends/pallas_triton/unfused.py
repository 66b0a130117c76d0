"""The kernels of the unfused ops. Weights of [B, T, N, K] are seen as [B * T * N * K]."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from natjax.kernels.backends.pallas_triton.program import (
    Penalty,
    Program,
    Tokens,
    current_program,
    loop,
    plan_of,
    zeros,
)
from natjax.kernels.backends.triton_common.config import padded_head_dim
from natjax.kernels.spec import KernelCall


def _slots(program: Program, rows: Tokens, columns: Tokens, heads: int, head: Any, queries: Any):
    """Index of each pair of a block in the weights, and whether there is such a pair."""
    seen = program.seen(rows, columns)
    slot = program.tile.slot(rows.positions, columns.positions)
    neighbors = program.call.spec.neighborhood.num_neighbors
    return (queries * heads + head) * neighbors + slot, seen


def qk(q_ref, k_ref, *refs, call: KernelCall, heads: int, kv_heads: int):
    """The logits of a tile of queries."""
    *plan, logits_ref = refs
    program = current_program(call, "qk", heads)
    table, slab = plan_of(program, tuple(plan))
    penalty = Penalty(program, table, program.head) if table else None
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q = rows.load(q_ref, program.head, heads)

    def body(chunk, carry):
        columns = program.columns(chunk)
        k = columns.load(k_ref, kv_head, kv_heads)
        logits = program.dot(q, k, transpose=True) * call.scale
        if penalty is not None:
            logits = penalty.add(logits, rows, columns, chunk)
        queries = rows.index[:, None]
        index, seen = _slots(program, rows, columns, heads, program.head, queries)
        index = jnp.where(seen, index, logits_ref.shape[0])
        plgpu.store(logits_ref.at[index], logits.astype(logits_ref.dtype), mask=seen)
        return carry

    slab.fold(body, jnp.int32(0))


def av(w_ref, v_ref, *refs, call: KernelCall, heads: int, kv_heads: int):
    """For each query of a tile, the sum over its window of weight times value."""
    *plan, out_ref = refs
    program = current_program(call, "av", heads)
    _, slab = plan_of(program, tuple(plan))
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()

    def body(chunk, acc):
        columns = program.columns(chunk)
        queries = rows.index[:, None]
        index, seen = _slots(program, rows, columns, heads, program.head, queries)
        w = plgpu.load(w_ref.at[jnp.where(seen, index, 0)], mask=seen, other=0.0)
        return acc + program.dot(w, columns.load(v_ref, kv_head, kv_heads))

    start = zeros(rows.index.shape[0], padded_head_dim(v_ref.shape[1]))
    acc = slab.fold(body, start)
    rows.store(out_ref, program.head, heads, acc * call.scale)


def av_transposed(w_ref, x_ref, *refs, call: KernelCall, heads: int, kv_heads: int):
    """For each key, the sum over the queries that see it of weight times ``x`` of the query."""
    *plan, out_ref = refs
    program = current_program(call, "av_transposed", kv_heads)
    _, slab = plan_of(program, tuple(plan))
    groups = heads // kv_heads
    rows = program.rows()

    def of_head(head, acc):
        def body(chunk, acc):
            columns = program.columns(chunk)
            queries = columns.index[None, :]
            index, seen = _slots(program, rows, columns, heads, head, queries)
            w = plgpu.load(w_ref.at[jnp.where(seen, index, 0)], mask=seen, other=0.0)
            return acc + program.dot(w, columns.load(x_ref, head, heads))

        return slab.fold(body, acc)

    acc = zeros(rows.index.shape[0], padded_head_dim(x_ref.shape[1]))
    first = program.head * groups
    acc = loop(groups, lambda i, acc: of_head(first + i, acc), acc)
    rows.store(out_ref, program.head, kv_heads, acc * call.scale)
