"""The kernels of the unfused ops; what they take is in `natjax.kernels.autodiff`."""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.program import (
    across,
    chunk_number,
    chunk_start,
    columns_of,
    exist,
    image,
    load_tokens,
    place,
    product,
    reach_of,
    rows_of,
    sees,
    slot_of,
    store_tokens,
    table_block,
    token_at,
    windows,
)


@triton.jit
@no_type_check
def qk(q, k, table, kind, reach, logits, s: tl.constexpr):
    """The logits of a tile of queries."""
    number = tl.program_id(0)
    tile = number % s.tiles
    head = number // s.tiles % s.heads
    batch = number // (s.tiles * s.heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    q_image = image(q, batch, head, s.heads, s.width, s)
    q_tile = load_tokens(q_image, row, exists, s.rows_exist, s.heads, s.width, s.padded_width, s)
    k_image = image(k, batch, head // s.groups, s.kv_heads, s.width, s)
    out = image(logits, batch, head, s.heads, s.neighbors, s)
    if s.has_table:
        block = table_block(table, head, tl.load(kind + tile), s)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        keys = load_tokens(
            k_image, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        block_logits = product(q_tile, keys.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        block_logits *= s.scale
        if s.has_table:
            block_logits += tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
        entry, seen = entries(rows, row, exists, columns, groups, True, s)
        tl.store(out + entry, block_logits.to(logits.dtype.element_ty), mask=seen)


@triton.jit
@no_type_check
def av(w, v, reach, out, s: tl.constexpr):
    """For each query of a tile, the sum over its window of weight times value."""
    number = tl.program_id(0)
    tile = number % s.tiles
    head = number // s.tiles % s.heads
    batch = number // (s.tiles * s.heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    w_image = image(w, batch, head, s.heads, s.neighbors, s)
    v_image = image(v, batch, head // s.groups, s.kv_heads, s.width, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        entry, seen = entries(rows, row, exists, columns, groups, True, s)
        weights = tl.load(w_image + entry, mask=seen, other=0.0)
        values = load_tokens(
            v_image, column, there, s.columns_exist, s.kv_heads, s.width, s.padded_width, s
        )
        acc = product(weights, values, acc, s)
    out_image = image(out, batch, head, s.heads, s.width, s)
    store_tokens(out_image, row, exists, acc * s.scale, s.heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def av_transposed(w, x, reach, out, s: tl.constexpr):
    """For each key, the sum over the queries that see it of weight times ``x`` of the query."""
    number = tl.program_id(0)
    tile = number % s.tiles
    kv_head = number // s.tiles % s.kv_heads
    batch = number // (s.tiles * s.kv_heads)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    row = token_at(rows, groups, s)
    exists = exist(rows, groups, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    for index in tl.range(0, count * s.groups, num_stages=s.stages):
        head = kv_head * s.groups
        if s.groups > 1:
            head += index // count
            index = index % count
        chunk = chunk_number(index, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        column = token_at(columns, groups, s)
        there = exist(columns, groups, s)
        w_image = image(w, batch, head, s.heads, s.neighbors, s)
        x_image = image(x, batch, head, s.heads, s.width, s)
        entry, seen = entries(columns, column, there, rows, groups, False, s)
        weights = tl.load(w_image + entry, mask=seen, other=0.0)
        queries = load_tokens(
            x_image, column, there, s.columns_exist, s.heads, s.width, s.padded_width, s
        )
        acc = product(weights, queries, acc, s)
    out_image = image(out, batch, kv_head, s.kv_heads, s.width, s)
    store_tokens(out_image, row, exists, acc * s.scale, s.kv_heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def entries(queries, token, exists, keys, groups, rows_are_queries: tl.constexpr, s: tl.constexpr):
    """Where the weights of the pairs of a block are, and which pairs see one another."""
    starts, sizes = windows(queries, exists, groups, s)
    of_query = token * (s.heads * s.neighbors) - slot_of(starts, s)
    of_query, of_key = across(of_query, slot_of(keys, s), rows_are_queries)
    return of_query + of_key, sees(starts, sizes, keys, rows_are_queries, s)
