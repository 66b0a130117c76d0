"""Reading and writing arrays of ``[B, T, N, D]``, or ``[B, T, N]``, by head and token.

Tokens come with whether they exist, as `tokens_of` of
`natjax.kernels.backends.jax_triton.language.program` returns them, and ``all_exist`` says that this
need not be looked at.
"""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.language.program import (
    chunk_start,
    columns_of,
    exist,
    summed_columns_of,
    token_at,
)


@triton.jit
@no_type_check
def image(pointer, batch, head, heads: tl.constexpr, width: tl.constexpr, s: tl.constexpr):
    """Where a head of an image begins in an array of ``[B, T, heads, width]``."""
    return pointer + (batch.to(tl.int64) * (s.tokens * heads) + head) * width


@triton.jit
@no_type_check
def rows_at(
    pointer,
    batch,
    head,
    token,
    heads: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    s: tl.constexpr,
):
    """Where the entries of tokens are, and which of the padded ones there are."""
    lane = tl.arange(0, padded)[None, :]
    if s.is_long:
        token = token.to(tl.int64)
    first = image(pointer, batch, head, heads, width, s)
    return first + token[:, None] * (heads * width) + lane, lane < width


@triton.jit
@no_type_check
def load(
    pointer,
    batch,
    head,
    tokens,
    all_exist: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    s: tl.constexpr,
):
    """Rows of tokens, with zeros where there is no token."""
    token, exists = tokens
    pointers, within = rows_at(pointer, batch, head, token, heads, width, padded, s)
    return load_rows(pointers, within, exists, all_exist, width, padded, s)


@triton.jit
@no_type_check
def load_rows(
    pointers,
    within,
    exists,
    all_exist: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    s: tl.constexpr,
):
    """Rows from where `rows_at` says, with zeros where there is no token."""
    # What is loaded twice, for `product_of_block`, is in the L1 cache the second time.
    cache: tl.constexpr = ".ca" if s.is_threefold else ""
    if all_exist and width == padded:
        result = tl.load(pointers, cache_modifier=cache)
    elif all_exist:
        result = tl.load(pointers, mask=within, other=0.0, cache_modifier=cache)
    elif width == padded:
        result = tl.load(pointers, mask=exists[:, None], other=0.0, cache_modifier=cache)
    else:
        result = tl.load(pointers, mask=exists[:, None] & within, other=0.0, cache_modifier=cache)
    return result


@triton.jit
@no_type_check
def store(
    pointer,
    batch,
    head,
    tokens,
    value,
    heads: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    s: tl.constexpr,
):
    """Write the rows of those tokens that exist."""
    token, exists = tokens
    pointers, within = rows_at(pointer, batch, head, token, heads, width, padded, s)
    tl.store(pointers, value.to(pointer.dtype.element_ty), mask=exists[:, None] & within)


@triton.jit
@no_type_check
def load_queries(q, batch, head, tokens, all_exist: tl.constexpr, s: tl.constexpr):
    """Some queries of a head of an image."""
    return load(q, batch, head, tokens, all_exist, s.heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def load_outputs(x, batch, head, tokens, all_exist: tl.constexpr, s: tl.constexpr):
    """Outputs, or their gradients, of some queries of a head of an image."""
    return load(x, batch, head, tokens, all_exist, s.heads, s.value_width, s.padded_value_width, s)


@triton.jit
@no_type_check
def load_keys(k, batch, kv_head, tokens, all_exist: tl.constexpr, s: tl.constexpr):
    """Some keys of a head of an image."""
    return load(k, batch, kv_head, tokens, all_exist, s.kv_heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def load_values(v, batch, kv_head, tokens, all_exist: tl.constexpr, s: tl.constexpr):
    """Some values of a head of an image."""
    return load(
        v, batch, kv_head, tokens, all_exist, s.kv_heads, s.value_width, s.padded_value_width, s
    )


@triton.jit
@no_type_check
def slab_of(
    pointer,
    batch,
    kv_head,
    starts,
    groups,
    is_value: tl.constexpr,
    is_summed: tl.constexpr,
    s: tl.constexpr,
):
    """Where the first chunk of a slab is, of keys or values, for `load_chunk`."""
    columns = columns_for(starts, is_summed, s)
    token = token_at(columns, groups, s)
    if is_value:
        result = rows_at(
            pointer, batch, kv_head, token, s.kv_heads, s.value_width, s.padded_value_width, s
        )
    else:
        result = rows_at(pointer, batch, kv_head, token, s.kv_heads, s.width, s.padded_width, s)
    return result


@triton.jit
@no_type_check
def load_chunk(
    slab,
    chunk: tl.constexpr,
    starts,
    groups,
    is_value: tl.constexpr,
    is_summed: tl.constexpr,
    s: tl.constexpr,
):
    """A chunk of a slab, whose addresses are those of the first and a constant.

    Its columns are in the order of `product_of_block` if they are to be ``is_summed`` over.
    """
    pointers, within = slab
    exists = exist(columns_for(chunk_start(chunk, starts, s), is_summed, s), groups, s)
    if is_value:
        rows = pointers + s.shifts[chunk] * (s.kv_heads * s.value_width)
        result = load_rows(
            rows, within, exists, s.columns_exist, s.value_width, s.padded_value_width, s
        )
    else:
        rows = pointers + s.shifts[chunk] * (s.kv_heads * s.width)
        result = load_rows(rows, within, exists, s.columns_exist, s.width, s.padded_width, s)
    return result


@triton.jit
@no_type_check
def columns_for(first, is_summed: tl.constexpr, s: tl.constexpr):
    """Position of each column of a chunk, in the order of `product_of_block` or in their own."""
    return summed_columns_of(first, s) if is_summed else columns_of(first, s)


@triton.jit
@no_type_check
def store_queries(q, batch, head, tokens, value, s: tl.constexpr):
    """Write something as wide as queries, for some queries of a head of an image."""
    store(q, batch, head, tokens, value, s.heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def store_outputs(x, batch, head, tokens, value, s: tl.constexpr):
    """Write the outputs of some queries of a head of an image."""
    store(x, batch, head, tokens, value, s.heads, s.value_width, s.padded_value_width, s)


@triton.jit
@no_type_check
def store_keys(k, batch, kv_head, tokens, value, s: tl.constexpr):
    """Write something as wide as keys, for some keys of a head of an image."""
    store(k, batch, kv_head, tokens, value, s.kv_heads, s.width, s.padded_width, s)


@triton.jit
@no_type_check
def store_values(v, batch, kv_head, tokens, value, s: tl.constexpr):
    """Write something as wide as values, for some keys of a head of an image."""
    store(v, batch, kv_head, tokens, value, s.kv_heads, s.value_width, s.padded_value_width, s)


@triton.jit
@no_type_check
def load_scalars(x, batch, head, tokens, s: tl.constexpr):
    """A number of each of some queries; zero where there is none."""
    token, exists = tokens
    return tl.load(image(x, batch, head, s.heads, 1, s) + token * s.heads, mask=exists, other=0.0)


@triton.jit
@no_type_check
def store_scalars(x, batch, head, tokens, value, s: tl.constexpr):
    """Write a number of each of those queries that exist."""
    token, exists = tokens
    tl.store(image(x, batch, head, s.heads, 1, s) + token * s.heads, value, mask=exists)
