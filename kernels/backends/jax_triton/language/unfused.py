"""The kernels of the unfused ops; what they take is in `natjax.kernels.kernel_ops`."""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.language.arrays import (
    image,
    load_keys,
    load_queries,
    store_keys,
    store_queries,
)
from natjax.kernels.backends.jax_triton.language.program import (
    across,
    block_of_tile,
    chunk_number,
    chunk_start,
    columns_of,
    next_chunk,
    place,
    product,
    program,
    reach_of,
    rows_of,
    sees,
    slot_of,
    tokens_of,
    windows,
)


@triton.jit
@no_type_check
def qk(q, k, table, kind, reach, logits, s: tl.constexpr):
    """The logits of a tile of queries."""
    tile, head, batch = program(s.heads, s)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    tokens = tokens_of(rows, groups, s)
    q_tile = load_queries(q, batch, head, tokens, s.rows_exist, s)
    out = image(logits, batch, head, s.heads, s.neighbors, s)
    block = block_of_tile(table, kind, tile, head, s)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        their_tokens = tokens_of(columns, groups, s)
        keys = load_keys(k, batch, head // s.groups, their_tokens, s.columns_exist, s)
        block_logits = product(q_tile, keys.T, tl.full((s.rows, s.columns), 0.0, tl.float32), s)
        block_logits *= s.scale
        if s.has_table:
            block_logits += tl.load(block + chunk * (s.rows * s.columns)).to(tl.float32)
        entry, seen = entries(rows, tokens, columns, groups, True, s)
        tl.store(out + entry, block_logits.to(logits.dtype.element_ty), mask=seen)


@triton.jit
@no_type_check
def av(w, v, reach, out, s: tl.constexpr):
    """For each query of a tile, the sum over its window of weight times value."""
    tile, head, batch = program(s.heads, s)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    tokens = tokens_of(rows, groups, s)
    w_image = image(w, batch, head, s.heads, s.neighbors, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count, num_stages=s.stages):
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        their_tokens = tokens_of(columns, groups, s)
        entry, seen = entries(rows, tokens, columns, groups, True, s)
        weights = tl.load(w_image + entry, mask=seen, other=0.0)
        values = load_keys(v, batch, head // s.groups, their_tokens, s.columns_exist, s)
        acc = product(weights, values, acc, s)
    store_queries(out, batch, head, tokens, acc * s.scale, s)


@triton.jit
@no_type_check
def av_transposed(w, x, reach, out, s: tl.constexpr):
    """For each key, the sum over the queries that see it of weight times ``x`` of the query."""
    tile, kv_head, batch = program(s.kv_heads, s)
    groups, first, starts = place(tile, s)
    rows = rows_of(first, s)
    tokens = tokens_of(rows, groups, s)
    acc = tl.full((s.rows, s.padded_width), 0.0, tl.float32)
    first_met, met, count = reach_of(reach, tile, s)
    at = first_met
    for index in tl.range(0, count * s.groups, num_stages=s.stages):
        head = kv_head * s.groups
        if s.groups > 1:
            head += index // count
            index = index % count
        chunk = chunk_number(index, at, s)
        at = next_chunk(at, first_met, met, s)
        columns = columns_of(chunk_start(chunk, starts, s), s)
        their_tokens = tokens_of(columns, groups, s)
        w_image = image(w, batch, head, s.heads, s.neighbors, s)
        entry, seen = entries(columns, their_tokens, rows, groups, False, s)
        weights = tl.load(w_image + entry, mask=seen, other=0.0)
        queries = load_queries(x, batch, head, their_tokens, s.columns_exist, s)
        acc = product(weights, queries, acc, s)
    store_keys(out, batch, kv_head, tokens, acc * s.scale, s)


@triton.jit
@no_type_check
def entries(queries, tokens, keys, groups, rows_are_queries: tl.constexpr, s: tl.constexpr):
    """Where the weights of the pairs of a block are, and which pairs see one another."""
    token, exists = tokens
    starts, sizes = windows(queries, exists, groups, s)
    of_query = token * (s.heads * s.neighbors) - slot_of(starts, s)
    of_query, of_key = across(of_query, slot_of(keys, s), rows_are_queries)
    return of_query + of_key, sees(starts, sizes, keys, rows_are_queries, s)
