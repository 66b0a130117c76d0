"""The kernels of the fused op. Logits are in units of log2(e), so that exp2 is all they need."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.pallas_triton.program import (
    Penalty,
    Program,
    current_program,
    loop,
    plan_of,
    zeros,
)
from natjax.kernels.backends.triton_common.config import padded_head_dim
from natjax.kernels.plan.pattern import HIDDEN
from natjax.kernels.spec import KernelCall


def forward(q_ref, k_ref, v_ref, *refs, call: KernelCall, heads: int, kv_heads: int):
    """The output of a tile of queries and its log-sum-exp, by an online softmax."""
    *plan, out_ref, lse_ref = refs
    program = current_program(call, "forward", heads)
    table, slab = plan_of(program, tuple(plan))
    penalty = Penalty(program, table, program.head)
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q = rows.load(q_ref, program.head, heads)
    factor = call.scale * LOG2_E

    def body(chunk, carry):
        top, total, acc = carry
        columns = program.columns(chunk)
        logits = program.dot(q, columns.load(k_ref, kv_head, kv_heads), transpose=True) * factor
        logits = penalty.select(logits, rows, columns, chunk)
        new_top = jnp.maximum(top, logits.max(axis=1))
        shrink = jnp.exp2(top - new_top)
        probs = program.exp2(logits - new_top[:, None])
        v = columns.load(v_ref, kv_head, kv_heads)
        acc = acc * shrink[:, None] + program.dot(probs.astype(v.dtype), v)
        return new_top, total * shrink + probs.sum(axis=1), acc

    n = rows.index.shape[0]
    start = (
        jnp.full((n,), HIDDEN, jnp.float32),
        zeros(n),
        zeros(n, padded_head_dim(v_ref.shape[1])),
    )
    top, total, acc = slab.fold(body, start)
    rows.store(out_ref, program.head, heads, acc / total[:, None])
    rows.store_scalars(lse_ref, program.head, heads, (top + jnp.log2(total)) / LOG2_E)


def dquery(
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    do_ref,
    lse_ref,
    dlse_ref,
    *refs,
    call: KernelCall,
    heads: int,
    kv_heads: int,
):
    """The gradient of a tile of queries, and their delta."""
    *plan, dq_ref, delta_ref = refs
    program = current_program(call, "dquery", heads)
    table, slab = plan_of(program, tuple(plan))
    penalty = Penalty(program, table, program.head)
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q, out, do = (rows.load(ref, program.head, heads) for ref in (q_ref, out_ref, do_ref))
    lse = rows.load_scalars(lse_ref, program.head, heads) * LOG2_E
    delta = (out.astype(jnp.float32) * do.astype(jnp.float32)).sum(axis=1)
    delta -= rows.load_scalars(dlse_ref, program.head, heads)
    rows.store_scalars(delta_ref, program.head, heads, delta)

    def body(chunk, dq):
        columns = program.columns(chunk)
        k, v = (columns.load(ref, kv_head, kv_heads) for ref in (k_ref, v_ref))
        logits = program.dot(q, k, transpose=True) * (call.scale * LOG2_E)
        probs = program.exp2(penalty.add(logits, rows, columns, chunk) - lse[:, None])
        dlogits = probs * (program.dot(do, v, transpose=True) - delta[:, None])
        return dq + program.dot(dlogits.astype(k.dtype), k)

    start = zeros(rows.index.shape[0], padded_head_dim(q_ref.shape[1]))
    dq = slab.fold(body, start)
    rows.store(dq_ref, program.head, heads, dq * call.scale)


def dkeyvalue(
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    lse_ref,
    delta_ref,
    *refs,
    call: KernelCall,
    heads: int,
    kv_heads: int,
):
    """The gradients of a tile of keys and of their values."""
    *plan, dk_ref, dv_ref = refs
    program = current_program(call, "dkeyvalue", kv_heads)
    table, slab = plan_of(program, tuple(plan))
    groups = heads // kv_heads
    rows = program.rows()
    k, v = (rows.load(ref, program.head, kv_heads) for ref in (k_ref, v_ref))
    n = rows.index.shape[0]

    def of_head(head, sums):
        penalty = Penalty(program, table, head)

        def body(chunk, carry):
            dk, dv = carry
            columns = program.columns(chunk)
            q, do = (columns.load(ref, head, heads) for ref in (q_ref, do_ref))
            lse = columns.load_scalars(lse_ref, head, heads) * LOG2_E
            delta = columns.load_scalars(delta_ref, head, heads)
            logits = program.dot(k, q, transpose=True) * (call.scale * LOG2_E)
            probs = program.exp2(penalty.add(logits, rows, columns, chunk) - lse[None, :])
            dv += program.dot(probs.astype(do.dtype), do)
            dlogits = probs * (program.dot(v, do, transpose=True) - delta[None, :])
            return dk + program.dot(dlogits.astype(q.dtype), q), dv

        return slab.fold(body, sums)

    sums = (zeros(n, padded_head_dim(k_ref.shape[1])), zeros(n, padded_head_dim(v_ref.shape[1])))
    first = program.head * groups
    sums = loop(groups, lambda i, sums: of_head(first + i, sums), sums)
    rows.store(dk_ref, program.head, kv_heads, sums[0] * call.scale)
    rows.store(dv_ref, program.head, kv_heads, sums[1])


def dbias(
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    lse_ref,
    delta_ref,
    table_ref,
    order_ref,
    first_ref,
    sums_ref,
    *,
    call: KernelCall,
    heads: int,
    kv_heads: int,
    batch: int,
):
    """Sums one block of all tiles of a kind, over its share of tiles and images."""
    blocks = call.blocks("dbias")
    splits, _, kinds, chunks = sums_ref.shape[:4]
    number = pl.program_id(0)
    chunk, number = number % chunks, number // chunks
    kind, number = number % kinds, number // kinds
    head, split = number % heads, number // heads
    kv_head = head // (heads // kv_heads)
    first, stop = first_ref[kind], first_ref[kind + 1]
    count = (stop - first) * batch
    block = table_ref[head, kind, chunk]

    def body(i, total):
        item = i * splits + split
        tile = order_ref[first + item // batch]
        program = Program(call, blocks.tile_at(tile), batch=item % batch, head=head)
        rows, columns = program.rows(), program.columns(chunk)
        q, do = (rows.load(ref, head, heads) for ref in (q_ref, do_ref))
        k, v = (columns.load(ref, kv_head, kv_heads) for ref in (k_ref, v_ref))
        lse = rows.load_scalars(lse_ref, head, heads) * LOG2_E
        delta = rows.load_scalars(delta_ref, head, heads)
        logits = program.dot(q, k, transpose=True) * (call.scale * LOG2_E) + block
        probs = program.exp2(logits - lse[:, None])
        return total + probs * (program.dot(do, v, transpose=True) - delta[:, None])

    start = zeros(blocks.num_rows, blocks.num_columns)
    rounds = (count - split + splits - 1) // splits
    sums_ref[split, head, kind, chunk] = jax.lax.fori_loop(jnp.int32(0), rounds, body, start)
