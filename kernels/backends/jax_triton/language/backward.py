"""The backward kernels of the fused op. Logits are in units of log2(e), so exp2 is all they need.

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
    load_outputs,
    load_queries,
    load_scalars,
    load_values,
    slab_of,
    store_keys,
    store_queries,
    store_scalars,
    store_values,
)
from natjax.kernels.backends.jax_triton.language.program import (
    HIDDEN,
    LOG2_E,
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
    table_block,
    tokens_of,
    windows,
)


@triton.jit
@no_type_check
def dquery(q, k, v, out, do, lse, dlse, table, kind, reach, dq, delta, s: tl.constexpr):
    """The gradient of a tile of queries, and their delta."""
    tile, head, batch = program(s.heads, s)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    tokens = tokens_of(rows, groups, s)
    q_tile, do_tile, lse_rows, delta_rows = rows_of_dquery(
        q, out, do, lse, dlse, batch, head, tokens, s
    )
    store_scalars(delta, batch, head, tokens, delta_rows, s)
    block = block_of_tile(table, kind, tile, head, s)
    kv_head = head // s.groups
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        chunk_first = chunk_start(chunk, starts, s)
        columns = columns_of(chunk_first, s)
        their_tokens = tokens_of(columns, groups, s)
        keys = load_keys(k, batch, kv_head, their_tokens, s.columns_exist, s)
        values = load_values(v, batch, kv_head, their_tokens, s.columns_exist, s)
        if s.has_table:
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            exponent = exponents(q_tile, keys, added, lse_rows[:, None], s)
        else:
            exponent = exponents(q_tile, keys, 0.0, lse_rows[:, None], s)
            if not is_whole(first, chunk_first, groups, True, s):
                seen_from, seen = windows(rows, tokens[1], groups, s)
                exponent = tl.where(sees(seen_from, seen, columns, True, s), exponent, HIDDEN)
        probs = tl.exp2(exponent)
        dprobs = product(do_tile, values.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        dlogits = probs * (dprobs - delta_rows[:, None])
        to_sum = tokens_of(summed_columns_of(chunk_first, s), groups, s)
        keys_to_sum = load_keys(k, batch, kv_head, to_sum, s.columns_exist, s)
        acc = product_of_block(dlogits.to(keys.dtype), keys_to_sum, acc, s)
    store_queries(dq, batch, head, tokens, acc * s.scale, s)


@triton.jit
@no_type_check
def dquery_and_dbias(
    q, k, v, out, do, lse, dlse, table, order, begin, kind, dq, delta, sums, s: tl.constexpr
):
    """The gradient of a share of tiles of queries, their delta, and the sums of their blocks.

    A program goes over images, whose tiles look alike: what to add to the logits stays in the L1
    cache, and what the gradient of the bias is made of in registers until the end.
    ``order`` are the tiles sorted by kind, ``begin`` is where each share of them begins, and
    ``kind`` is that of its tiles.
    """
    number = tl.program_id(0)
    share = number % s.shares
    head = number // s.shares % s.heads
    split = number // (s.shares * s.heads)
    entry = tl.arange(0, s.rows)[:, None] * s.columns + tl.arange(0, s.columns)[None, :]
    block = table_block(table, head, tl.load(kind + share), s)
    totals = ()
    for _ in tl.static_range(tl.constexpr(s.chunks)):
        totals += (tl.full((s.rows, s.columns), 0.0, tl.float32),)
    if s.shares == s.tiles:
        # No loop over one tile: what counts its rounds would take registers of the one within.
        tile = tl.load(order + share)
        totals = over_images(
            q, k, v, out, do, lse, dlse, block, dq, delta, totals, tile, head, split, s
        )
    else:
        for item in tl.range(tl.load(begin + share), tl.load(begin + share + 1)):
            tile = tl.load(order + item)
            totals = over_images(
                q, k, v, out, do, lse, dlse, block, dq, delta, totals, tile, head, split, s
            )
    of_head = head * (s.splits * s.shares) + split * s.shares + share
    pointer = sums + of_head.to(tl.int64) * (s.chunks * s.rows * s.columns) + entry
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        tl.store(pointer + chunk * (s.rows * s.columns), totals[chunk])


@triton.jit
@no_type_check
def over_images(
    q, k, v, out, do, lse, dlse, block, dq, delta, totals, tile, head, split, s: tl.constexpr
):
    """Write what a share of images has at a tile; the totals with the gradients of their logits."""
    groups, first, starts = place(tile, s)
    tokens = tokens_of(rows_of(first, s), groups, s)
    first_image = split * s.images
    num_images = tl.minimum(s.images, s.batch - first_image)
    for turn in tl.range(0, num_images, num_stages=s.stages):
        batch = first_image + turn
        q_tile, do_tile, lse_rows, delta_rows = rows_of_dquery(
            q, out, do, lse, dlse, batch, head, tokens, s
        )
        acc, totals = over_slab(
            q_tile, do_tile, lse_rows, delta_rows, k, v, block, totals, batch, head, groups,
            starts, s,
        )  # fmt: skip
        store_scalars(delta, batch, head, tokens, delta_rows, s)
        store_queries(dq, batch, head, tokens, acc * s.scale, s)
    return totals


@triton.jit
@no_type_check
def over_slab(
    q_tile,
    do_tile,
    lse_rows,
    delta_rows,
    k,
    v,
    block,
    totals,
    batch,
    head,
    groups,
    starts,
    s: tl.constexpr,
):
    """The gradient of a tile of queries, and the gradients of its logits on top of the totals."""
    kv_head = head // s.groups
    slab_of_keys = slab_of(k, batch, kv_head, starts, groups, False, False, s)
    slab_of_values = slab_of(v, batch, kv_head, starts, groups, True, False, s)
    slab_to_sum = slab_of(k, batch, kv_head, starts, groups, False, True, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    new_totals = ()
    for chunk in tl.static_range(tl.constexpr(s.chunks)):
        keys = load_chunk(slab_of_keys, chunk, starts, groups, False, False, s)
        values = load_chunk(slab_of_values, chunk, starts, groups, True, False, s)
        entries = block + chunk * (s.rows * s.columns)
        penalty = tl.load(entries, cache_modifier=".ca").to(tl.float32)
        probs = tl.exp2(exponents(q_tile, keys, penalty, lse_rows[:, None], s))
        dprobs = product(do_tile, values.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        dlogits = probs * (dprobs - delta_rows[:, None])
        new_totals += (totals[chunk] + dlogits,)
        to_sum = load_chunk(slab_to_sum, chunk, starts, groups, False, True, s)
        acc = product_of_block(dlogits.to(keys.dtype), to_sum, acc, s)
    return acc, new_totals


@triton.jit
@no_type_check
def dkeyvalue(q, k, v, do, lse, delta, table, kind, reach, dk, dv, s: tl.constexpr):
    """The gradients of a tile of keys and of their values."""
    tile, kv_head, batch = program(s.kv_heads, s)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    tokens = tokens_of(rows, groups, s)
    keys = load_keys(k, batch, kv_head, tokens, s.rows_exist, s)
    values = load_values(v, batch, kv_head, tokens, s.rows_exist, s)
    tile_kind = 0
    if s.has_table:
        tile_kind = tl.load(kind + tile)
    dk_acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    dv_acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count * s.groups, num_stages=s.stages):
        head = kv_head * s.groups
        if s.groups > 1:
            head += index // count
            index = index % count
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        chunk_first = chunk_start(chunk, starts, s)
        columns = columns_of(chunk_first, s)
        their_tokens = tokens_of(columns, groups, s)
        queries = load_queries(q, batch, head, their_tokens, s.columns_exist, s)
        douts = load_outputs(do, batch, head, their_tokens, s.columns_exist, s)
        lse_columns = load_scalars(lse, batch, head, their_tokens, s) * LOG2_E
        delta_columns = load_scalars(delta, batch, head, their_tokens, s)
        if s.has_table:
            block = table_block(table, head, tile_kind, s)
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            exponent = exponents(keys, queries, added, lse_columns[None, :], s)
        else:
            exponent = exponents(keys, queries, 0.0, lse_columns[None, :], s)
            if not is_whole(first, chunk_first, groups, False, s):
                seen_from, seen = windows(columns, their_tokens[1], groups, s)
                exponent = tl.where(sees(seen_from, seen, rows, False, s), exponent, HIDDEN)
        probs = tl.exp2(exponent)
        to_sum = tokens_of(summed_columns_of(chunk_first, s), groups, s)
        douts_to_sum = load_outputs(do, batch, head, to_sum, s.columns_exist, s)
        dv_acc = product_of_block(probs.to(douts.dtype), douts_to_sum, dv_acc, s)
        dprobs = product(values, douts.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        dlogits = probs * (dprobs - delta_columns[None, :])
        queries_to_sum = load_queries(q, batch, head, to_sum, s.columns_exist, s)
        dk_acc = product_of_block(dlogits.to(queries.dtype), queries_to_sum, dk_acc, s)
    store_keys(dk, batch, kv_head, tokens, dk_acc * s.scale, s)
    store_values(dv, batch, kv_head, tokens, dv_acc, s)


@triton.jit
@no_type_check
def dbias(q, k, v, do, lse, delta, table, order, begin, sums, s: tl.constexpr):
    """Sums one block of all tiles of a kind, over its share of tiles and images.

    ``order`` are the tiles sorted by kind, and ``begin`` is where each kind begins.
    """
    number = tl.program_id(0)
    chunk = number % s.chunks
    kind = number // s.chunks % s.kinds
    head = number // (s.chunks * s.kinds) % s.heads
    split = number // (s.chunks * s.kinds * s.heads)
    first_tile = tl.load(begin + kind)
    count = (tl.load(begin + kind + 1) - first_tile) * s.batch
    offset = chunk * (s.rows * s.columns)
    added = tl.load(table_block(table, head, kind, s) + offset).to(tl.float32)
    acc = tl.full((s.rows, s.columns), 0.0, tl.float32)
    for turn in tl.range(0, (count - split + s.splits - 1) // s.splits, num_stages=s.stages):
        item = turn * s.splits + split
        batch = item % s.batch
        groups, first, starts = place(tl.load(order + first_tile + item // s.batch), s)
        tokens = tokens_of(rows_of(first, s), groups, s)
        their_tokens = tokens_of(columns_of(chunk_start(chunk, starts, s), s), groups, s)
        keys = load_keys(k, batch, head // s.groups, their_tokens, s.columns_exist, s)
        values = load_values(v, batch, head // s.groups, their_tokens, s.columns_exist, s)
        q_tile = load_queries(q, batch, head, tokens, s.rows_exist, s)
        do_tile = load_outputs(do, batch, head, tokens, s.rows_exist, s)
        lse_rows = load_scalars(lse, batch, head, tokens, s) * LOG2_E
        delta_rows = load_scalars(delta, batch, head, tokens, s)
        probs = tl.exp2(exponents(q_tile, keys, added, lse_rows[:, None], s))
        dprobs = product(do_tile, values.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        acc += probs * (dprobs - delta_rows[:, None])
    first_sum = ((split * s.heads + head) * s.kinds + kind) * s.chunks
    block = sums + first_sum.to(tl.int64) * (s.rows * s.columns) + offset
    entry = tl.arange(0, s.rows)[:, None] * s.columns + tl.arange(0, s.columns)[None, :]
    tl.store(block + entry, acc)


@triton.jit
@no_type_check
def rows_of_dquery(q, out, do, lse, dlse, batch, head, tokens, s: tl.constexpr):
    """Of a tile of queries: themselves, the gradients of their outputs, log-sum-exp and delta.

    The log-sum-exp is in units of log2(e). Delta is what is taken from the gradients of weights to
    make them those of logits, the gradient of the log-sum-exp included.
    """
    q_tile = load_queries(q, batch, head, tokens, s.rows_exist, s)
    do_tile = load_outputs(do, batch, head, tokens, s.rows_exist, s)
    out_tile = load_outputs(out, batch, head, tokens, s.rows_exist, s)
    delta = tl.sum(out_tile.to(tl.float32) * do_tile.to(tl.float32), 1)
    delta -= load_scalars(dlse, batch, head, tokens, s)
    return q_tile, do_tile, load_scalars(lse, batch, head, tokens, s) * LOG2_E, delta


@triton.jit
@no_type_check
def exponents(a, b, added, lse, s: tl.constexpr):
    """Of two: what a block of weights was made of in the forward pass."""
    logits = product(a, b.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
    return logits * s.factor + (added - lse)
