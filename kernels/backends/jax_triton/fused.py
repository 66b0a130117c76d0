"""The kernels of the fused op. Logits are in units of log2(e), so that exp2 is all they need.

What each takes is in `natjax.kernels.autodiff`; then come the table of what to add to the logits
and the kind of each tile, or anything where there is no table, and which chunks each tile meets.
"""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.program import (
    HIDDEN,
    LN_2,
    LOG2_E,
    chunk_number,
    chunk_start,
    columns_of,
    exist,
    image,
    is_whole,
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
    """The output of a tile of queries and its log-sum-exp."""
    number = tl.program_id(0)
    tile = number % s.tiles
    head = number // s.tiles % s.heads
    batch = number // (s.tiles * s.heads)
    groups, first, _ = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    q_tile = load_tokens(
        image(q, batch, head, s.heads, s.width, s),
        row,
        exists,
        s.rows_exist,
        s.heads,
        s.width,
        s.padded_width,
        s,
    )
    k_image = image(k, batch, head // s.groups, s.kv_heads, s.width, s)
    v_image = image(v, batch, head // s.groups, s.kv_heads, s.value_width, s)
    top, total, acc = softmax(q_tile, k_image, v_image, table, kind, reach, tile, head, False, s)
    # A key that is nan has reached queries that do not see it, if the table hides it from them.
    # That is rare, and choosing among logits in every chunk is not free.
    if s.has_table and tl.max((total != total).to(tl.int32), 0) > 0:
        top, total, acc = softmax(q_tile, k_image, v_image, table, kind, reach, tile, head, True, s)
    store_tokens(
        image(out, batch, head, s.heads, s.value_width, s),
        row,
        exists,
        acc / total[:, None],
        s.heads,
        s.value_width,
        s.padded_value_width,
        s,
    )
    lse_image = image(lse, batch, head, s.heads, 1, s)
    tl.store(lse_image + row * s.heads, (top + tl.log2(total)) * LN_2, mask=exists)


@triton.jit
@no_type_check
def softmax(
    q_tile, k, v, table, kind, reach, tile, head, is_careful: tl.constexpr, s: tl.constexpr
):
    """An online softmax over the chunks of a tile's slab.

    Returns the largest logit of each row, the sum of the weights, and that of weighted values.
    """
    groups, first, starts = place(tile, s)
    if s.has_table:
        block = table_block(table, head, tl.load(kind + tile), s)
    else:
        rows = rows_of(first, s)
        seen_from, seen = windows(rows, exist(rows, groups, s), groups, s)
    top = tl.full((s.rows,), HIDDEN, tl.float32)
    total = tl.full((s.rows,), 0.0, tl.float32)
    acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, first_met, met, s)
        chunk_first = chunk_start(chunk, starts, s)
        columns = columns_of(chunk_first, s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        keys = load_tokens(
            k, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        logits = product(q_tile, keys.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        if s.has_table:
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            if is_careful:
                logits = tl.where(added > HIDDEN / 2, logits * s.factor + added, HIDDEN)
            else:
                logits = logits * s.factor + added
        else:
            logits *= s.factor
            if not is_whole(first, chunk_first, groups, True, s):
                logits = tl.where(sees(seen_from, seen, columns, True, s), logits, HIDDEN)
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        probs = tl.exp2(logits - new_top[:, None])
        values = load_tokens(
            v, column, there, s.columns_exist, s.kv_heads, s.value_width, s.padded_value_width, s
        )
        total = total * shrink + tl.sum(probs, 1)
        acc = product(probs.to(values.dtype), values, acc * shrink[:, None], s)
        top = new_top
    return top, total, acc


@triton.jit
@no_type_check
def exponents(a, b, added, lse, s: tl.constexpr):
    """Of two: what a block of weights was made of in the forward pass."""
    logits = product(a, b.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
    return logits * s.factor + (added - lse)


@triton.jit
@no_type_check
def dquery(q, k, v, do, lse, delta, table, kind, reach, dq, s: tl.constexpr):
    """The gradient of a tile of queries."""
    number = tl.program_id(0)
    tile = number % s.tiles
    head = number // s.tiles % s.heads
    batch = number // (s.tiles * s.heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    q_tile = load_queries(q, batch, head, row, exists, s.rows_exist, s)
    do_tile = load_outputs(do, batch, head, row, exists, s.rows_exist, s)
    lse_rows = load_scalars(image(lse, batch, head, s.heads, 1, s), row, exists, s.heads) * LOG2_E
    delta_rows = load_scalars(image(delta, batch, head, s.heads, 1, s), row, exists, s.heads)
    k_image = image(k, batch, head // s.groups, s.kv_heads, s.width, s)
    v_image = image(v, batch, head // s.groups, s.kv_heads, s.value_width, s)
    if s.has_table:
        block = table_block(table, head, tl.load(kind + tile), s)
    else:
        seen_from, seen = windows(rows, exists, groups, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, first_met, met, s)
        chunk_first = chunk_start(chunk, starts, s)
        columns = columns_of(chunk_first, s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        keys = load_tokens(
            k_image, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        values = load_tokens(
            v_image,
            column,
            there,
            s.columns_exist,
            s.kv_heads,
            s.value_width,
            s.padded_value_width,
            s,
        )
        if s.has_table:
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            exponent = exponents(q_tile, keys, added, lse_rows[:, None], s)
        else:
            exponent = exponents(q_tile, keys, 0.0, lse_rows[:, None], s)
            if not is_whole(first, chunk_first, groups, True, s):
                exponent = tl.where(sees(seen_from, seen, columns, True, s), exponent, HIDDEN)
        probs = tl.exp2(exponent)
        dprobs = product(do_tile, values.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        dlogits = probs * (dprobs - delta_rows[:, None])
        acc = product(dlogits.to(keys.dtype), keys, acc, s)
    store_tokens(
        image(dq, batch, head, s.heads, s.width, s),
        row,
        exists,
        acc * s.scale,
        s.heads,
        s.width,
        s.padded_width,
        s,
    )


@triton.jit
@no_type_check
def dkeyvalue(q, k, v, do, lse, delta, table, kind, reach, dk, dv, s: tl.constexpr):
    """The gradients of a tile of keys and of their values."""
    number = tl.program_id(0)
    tile = number % s.tiles
    kv_head = number // s.tiles % s.kv_heads
    batch = number // (s.tiles * s.kv_heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    k_image = image(k, batch, kv_head, s.kv_heads, s.width, s)
    v_image = image(v, batch, kv_head, s.kv_heads, s.value_width, s)
    keys = load_tokens(k_image, row, exists, s.rows_exist, s.kv_heads, s.width, s.padded_width, s)
    values = load_tokens(
        v_image, row, exists, s.rows_exist, s.kv_heads, s.value_width, s.padded_value_width, s
    )
    tile_kind = 0
    if s.has_table:
        tile_kind = tl.load(kind + tile)
    dk_acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    dv_acc = tl.full((s.rows, s.padded_value_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count * s.groups, num_stages=s.stages):
        head = kv_head * s.groups
        if s.groups > 1:
            head += index // count
            index = index % count
        chunk = chunk_number(index, first_met, met, s)
        chunk_first = chunk_start(chunk, starts, s)
        columns = columns_of(chunk_first, s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        queries = load_queries(q, batch, head, column, there, s.columns_exist, s)
        douts = load_outputs(do, batch, head, column, there, s.columns_exist, s)
        lse_image = image(lse, batch, head, s.heads, 1, s)
        delta_image = image(delta, batch, head, s.heads, 1, s)
        lse_columns = load_scalars(lse_image, column, there, s.heads) * LOG2_E
        delta_columns = load_scalars(delta_image, column, there, s.heads)
        if s.has_table:
            block = table_block(table, head, tile_kind, s)
            added = tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
            exponent = exponents(keys, queries, added, lse_columns[None, :], s)
        else:
            exponent = exponents(keys, queries, 0.0, lse_columns[None, :], s)
            if not is_whole(first, chunk_first, groups, False, s):
                seen_from, seen = windows(columns, there, groups, s)
                exponent = tl.where(sees(seen_from, seen, rows, False, s), exponent, HIDDEN)
        probs = tl.exp2(exponent)
        dv_acc = product(probs.to(douts.dtype), douts, dv_acc, s)
        dprobs = product(values, douts.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        dlogits = probs * (dprobs - delta_columns[None, :])
        dk_acc = product(dlogits.to(queries.dtype), queries, dk_acc, s)
    dk_image = image(dk, batch, kv_head, s.kv_heads, s.width, s)
    dv_image = image(dv, batch, kv_head, s.kv_heads, s.value_width, s)
    store_tokens(dk_image, row, exists, dk_acc * s.scale, s.kv_heads, s.width, s.padded_width, s)
    store_tokens(dv_image, row, exists, dv_acc, s.kv_heads, s.value_width, s.padded_value_width, s)


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
        rows = rows_of(first, s)
        row = token_at(rows, groups, s)
        exists = exist(rows, groups, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        k_image = image(k, batch, head // s.groups, s.kv_heads, s.width, s)
        v_image = image(v, batch, head // s.groups, s.kv_heads, s.value_width, s)
        keys = load_tokens(
            k_image, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        values = load_tokens(
            v_image,
            column,
            there,
            s.columns_exist,
            s.kv_heads,
            s.value_width,
            s.padded_value_width,
            s,
        )
        q_tile = load_queries(q, batch, head, row, exists, s.rows_exist, s)
        do_tile = load_outputs(do, batch, head, row, exists, s.rows_exist, s)
        lse_image = image(lse, batch, head, s.heads, 1, s)
        delta_image = image(delta, batch, head, s.heads, 1, s)
        lse_rows = load_scalars(lse_image, row, exists, s.heads) * LOG2_E
        delta_rows = load_scalars(delta_image, row, exists, s.heads)
        probs = tl.exp2(exponents(q_tile, keys, added, lse_rows[:, None], s))
        dprobs = product(do_tile, values.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        acc += probs * (dprobs - delta_rows[:, None])
    first_sum = ((split * s.heads + head) * s.kinds + kind) * s.chunks
    block = sums + first_sum.to(tl.int64) * (s.rows * s.columns) + offset
    entry = tl.arange(0, s.rows)[:, None] * s.columns + tl.arange(0, s.columns)[None, :]
    tl.store(block + entry, acc)


@triton.jit
@no_type_check
def load_queries(q, batch, head, token, exists, all_exist: tl.constexpr, s: tl.constexpr):
    """Some queries of a head of an image."""
    pointer = image(q, batch, head, s.heads, s.width, s)
    return load_tokens(pointer, token, exists, all_exist, s.heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def load_outputs(x, batch, head, token, exists, all_exist: tl.constexpr, s: tl.constexpr):
    """Outputs, or their gradients, of some queries of a head of an image."""
    pointer = image(x, batch, head, s.heads, s.value_width, s)
    return load_tokens(
        pointer, token, exists, all_exist, s.heads, s.value_width, s.padded_value_width, s
    )
