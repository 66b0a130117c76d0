"""The kernels of the fused op. Logits are in units of log2(e), so that exp2 is all they need.

What each takes is in `natjax.kernels.autodiff`; then come the table of what to add to the logits and
the kind of each tile, or anything where there is no table, and which chunks each tile meets.
"""

from typing import no_type_check

import triton
import triton.language as tl
from triton.language import core as core

from natjax.kernels.backends.jax_triton.program import (
    HIDDEN,
    LN_2,
    chunk_number,
    chunk_start,
    columns_of,
    exist,
    image,
    load_scalars,
    load_tokens,
    place,
    product,
    reach_of,
    rows_of,
    sees,
    store_tokens,
    table_block,
    token_at,
    windows,
)


@triton.jit
@no_type_check
def forward(q, k, v, table, kind, reach, out, lse, s: tl.constexpr):
    """The output of a tile of queries and its log-sum-exp, by an online softmax."""
    number = tl.program_id(0)
    tile = number % s.tiles
    head = number // s.tiles % s.heads
    batch = number // (s.tiles * s.heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    q_tile = load_tokens(
        image(q, batch, head, s.heads, s.width, s),
        row, exists, s.rows_exist, s.heads, s.width, s.padded_width, s,
    )
    k_image = image(k, batch, head // s.groups, s.kv_heads, s.width, s)
    v_image = image(v, batch, head // s.groups, s.kv_heads, s.value_width, s)
    if s.has_table:
        block = table_block(table, head, tl.load(kind + tile), s)
    else:
        seen_from, seen = windows(rows, exists, groups, s)

    top = tl.full((s.rows,), HIDDEN, tl.float32)
    total = tl.full((s.rows,), 0.0, tl.float32)
    acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        keys = load_tokens(
            k_image, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        logits = product(q_tile, keys.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        if s.has_table:
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            # Selected, and not only added to: a hidden key may be nan.
            logits = tl.where(added > HIDDEN / 2, logits * s.factor + added, HIDDEN)
        else:
            logits = tl.where(sees(seen_from, seen, columns, True, s), logits * s.factor, HIDDEN)
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        probs = tl.exp2(logits - new_top[:, None])
        values = load_tokens(
            v_image, column, there, s.columns_exist, s.kv_heads, s.value_width,
            s.padded_value_width, s,
        )
        total = total * shrink + tl.sum(probs, 1)
        acc = product(probs.to(values.dtype), values, acc * shrink[:, None], s)
        top = new_top
    store_tokens(
        image(out, batch, head, s.heads, s.value_width, s),
        row, exists, acc / total[:, None], s.heads, s.value_width, s.padded_value_width, s,
    )
    lse_image = image(lse, batch, head, s.heads, 1, s)
    tl.store(lse_image + row * s.heads, (top + tl.log2(total)) * LN_2, mask=exists)
