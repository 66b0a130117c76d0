"""The forward kernel of the fused op. Logits are in units of log2(e), so that exp2 is all it needs.

What kernels take is in `natjax.kernels.kernel_ops`; then come the table of what to add to the
logits and the kind of each tile, or anything where there is no table, and which chunks each tile
meets.
"""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.language.arrays import (
    load_chunk,
    load_keys,
    load_queries,
    load_values,
    slab_of,
    store_outputs,
    store_scalars,
)
from natjax.kernels.backends.jax_triton.language.program import (
    HIDDEN,
    LN_2,
    block_of_tile,
    chunk_number,
    chunk_start,
    columns_of,
    is_whole,
    next_chunk,
    place,
    product,
    product_of_block,
    program,
    reach_of,
    rows_of,
    sees,
    summed_columns_of,
    tokens_of,
    windows,
)


@triton.jit
@no_type_check
def forward(q, k, v, table, kind, reach, out, lse, s: tl.constexpr):
    """The output of a tile of queries and its log-sum-exp."""
    tile, head, batch = program(s.heads, s)
    groups, first, _ = place(tile, s)
    tokens = tokens_of(rows_of(first, s), groups, s)
    q_tile = load_queries(q, batch, head, tokens, s.rows_exist, s)
    top, total, acc = softmax(q_tile, k, v, table, kind, reach, tile, head, batch, False, s)
    # A key that is nan has reached queries that do not see it, if the table hides it from them.
    # That is rare, and choosing among logits in every chunk is not free.
    if s.looks_for_nan and tl.max((total != total).to(tl.int32), 0) > 0:
        top, total, acc = softmax(q_tile, k, v, table, kind, reach, tile, head, batch, True, s)
    store_outputs(out, batch, head, tokens, acc / total[:, None], s)
    store_scalars(lse, batch, head, tokens, (top + tl.log2(total)) * LN_2, s)


@triton.jit
@no_type_check
def softmax(
    q_tile, k, v, table, kind, reach, tile, head, batch, is_careful: tl.constexpr, s: tl.constexpr
):
    """The softmax over a tile's slab.

    Returns the largest logit of each row, the sum of the weights, and that of weighted values.
    """
    if s.is_unrolled:
        result = softmax_at_once(q_tile, k, v, table, kind, tile, head, batch, is_careful, s)
    else:
        result = softmax_by_chunks(
            q_tile, k, v, table, kind, reach, tile, head, batch, is_careful, s
        )
    return result


@triton.jit
@no_type_check
def softmax_at_once(
    q_tile, k, v, table, kind, tile, head, batch, is_careful: tl.constexpr, s: tl.constexpr
):
    """The softmax where registers hold the logits of a whole slab.

    All keys are asked for before the first is needed, all values likewise; and there is one maximum
    and one sum over columns, where an online softmax has them in every chunk.
    """
    groups, _, starts = place(tile, s)
    block = block_of_tile(table, kind, tile, head, s)
    kv_head = head // s.groups
    slab = slab_of(k, batch, kv_head, starts, groups, False, False, s)
    keys = ()
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        keys += (load_chunk(slab, chunk, starts, groups, False, False, s),)
    highest = tl.full((s.rows, s.columns), HIDDEN, tl.float32)
    logits = ()
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        new = masked_logits(q_tile, keys[chunk], chunk, block, tile, is_careful, s)
        highest = tl.maximum(highest, new)
        logits += (new,)
    slab = slab_of(v, batch, kv_head, starts, groups, True, True, s)
    values = ()
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        values += (load_chunk(slab, chunk, starts, groups, True, True, s),)
    top = tl.max(highest, 1)
    sums = tl.full((s.rows, s.columns), 0.0, tl.float32)
    acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        probs = tl.exp2(logits[chunk] - top[:, None])
        sums += probs
        acc = product_of_block(probs.to(values[chunk].dtype), values[chunk], acc, s)
    return top, tl.sum(sums, 1), acc


@triton.jit
@no_type_check
def softmax_by_chunks(
    q_tile, k, v, table, kind, reach, tile, head, batch, is_careful: tl.constexpr, s: tl.constexpr
):
    """An online softmax over those chunks of the slab that the tile meets."""
    groups, _, starts = place(tile, s)
    block = block_of_tile(table, kind, tile, head, s)
    kv_head = head // s.groups
    top = tl.full((s.rows,), HIDDEN, tl.float32)
    total = tl.full((s.rows,), 0.0, tl.float32)
    acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        tokens = tokens_of(columns_of(chunk_start(chunk, starts, s), s), groups, s)
        keys = load_keys(k, batch, kv_head, tokens, s.columns_exist, s)
        logits = masked_logits(q_tile, keys, chunk, block, tile, is_careful, s)
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        probs = tl.exp2(logits - new_top[:, None])
        tokens = tokens_of(summed_columns_of(chunk_start(chunk, starts, s), s), groups, s)
        values = load_values(v, batch, kv_head, tokens, s.columns_exist, s)
        total = total * shrink + tl.sum(probs, 1)
        acc = product_of_block(probs.to(values.dtype), values, acc * shrink[:, None], s)
        top = new_top
    return top, total, acc


@triton.jit
@no_type_check
def masked_logits(q_tile, keys, chunk, block, tile, is_careful: tl.constexpr, s: tl.constexpr):
    """The logits of a block with bias and mask.

    A careful one hides what is hidden even where the products are nan.
    """
    logits = product(q_tile, keys.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s) * s.factor
    if s.has_table:
        added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
        if is_careful:
            logits = tl.where(added > HIDDEN / 2, logits + added, HIDDEN)
        else:
            logits += added
    else:
        groups, first, starts = place(tile, s)
        chunk_first = chunk_start(chunk, starts, s)
        if not is_whole(first, chunk_first, groups, True, s):
            rows = rows_of(first, s)
            seen_from, seen = windows(rows, tokens_of(rows, groups, s)[1], groups, s)
            columns = columns_of(chunk_first, s)
            logits = tl.where(sees(seen_from, seen, columns, True, s), logits, HIDDEN)
    return logits
