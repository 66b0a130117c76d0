"""Where a program is: its tile, the chunks of its slab, and which rows and columns see one another.

What is constant for a kernel is its ``s``, a
`natjax.kernels.backends.jax_triton.statics.Statics`, or ``axis``, one of its axes. Triton's
language cannot call Python on values that are known only when a kernel runs, so `locate` and
`window_start` say in it what `natjax.kernels.plan.blocks` and `natjax.kernels.neighborhood` say;
the tests compare them for every tile and query.
"""

from typing import no_type_check

import triton
import triton.language as tl

# What hides a logit: finite, so that no difference of two is nan.
HIDDEN = tl.constexpr(-1e30)
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def locate(tile, axis: tl.constexpr):
    """Dilation group, first row position and first column position of a tile along an axis."""
    group = tile // axis.per_group
    first = tile % axis.per_group * axis.tile
    start = tl.minimum(tl.maximum(first + axis.offset, 0), axis.last)
    return group, first, start


@triton.jit
@no_type_check
def group_length(group, axis: tl.constexpr):
    """Tokens in a dilation group."""
    return (axis.length - group + axis.dilation - 1) // axis.dilation


@triton.jit
@no_type_check
def window_start(query, length, axis: tl.constexpr):
    """Position of the first key that a query position of a group of some length sees."""
    leader = query
    if axis.stride > 1:
        leader = query // axis.stride * axis.stride
        leader += axis.stride - 1 if axis.is_causal else axis.stride // 2
        leader = tl.minimum(leader, length - 1)
    if axis.is_causal:
        start = tl.maximum(leader - (axis.kernel_size - 1), 0)
    else:
        start = tl.maximum(leader - axis.kernel_size // 2, 0)
        start = tl.minimum(start, length - axis.kernel_size)
    return start


@triton.jit
@no_type_check
def program(heads: tl.constexpr, s: tl.constexpr):
    """Tile, head and image of this program, tiles fastest, so that those that run share slabs."""
    number = tl.program_id(0)
    return number % s.tiles, number // s.tiles % heads, number // (s.tiles * heads)


@triton.jit
@no_type_check
def place(tile, s: tl.constexpr):
    """Groups, first rows and first columns of a tile, each along the three axes."""
    rest = tile // s.w.num_tiles
    gt, rt, ct = locate(rest // s.h.num_tiles, s.t)
    gh, rh, ch = locate(rest % s.h.num_tiles, s.h)
    gw, rw, cw = locate(tile % s.w.num_tiles, s.w)
    return (gt, gh, gw), (rt, rh, rw), (ct, ch, cw)


@triton.jit
@no_type_check
def rows_of(first, s: tl.constexpr):
    """Position of each row of a tile along the axes."""
    lane = tl.arange(0, s.rows)
    t = first[0] + lane // (s.h.tile * s.w.tile)
    return t, first[1] + lane // s.w.tile % s.h.tile, first[2] + lane % s.w.tile


@triton.jit
@no_type_check
def columns_of(first, s: tl.constexpr):
    """Position of each column of a chunk that begins at some positions."""
    return in_chunk(tl.arange(0, s.columns), first, s)


@triton.jit
@no_type_check
def in_chunk(lane, first, s: tl.constexpr):
    """Position of the columns of these numbers in a chunk that begins at some positions."""
    t = first[0] + lane // (s.h.chunk * s.w.chunk)
    return t, first[1] + lane // s.w.chunk % s.h.chunk, first[2] + lane % s.w.chunk


@triton.jit
@no_type_check
def token_at(positions, groups, s: tl.constexpr):
    """Flat index of the token at a position of the tile's dilation groups."""
    token = positions[2] * s.w.dilation + groups[2]
    if s.axes > 1:
        token += (positions[1] * s.h.dilation + groups[1]) * s.w.length
    if s.axes > 2:
        token += (positions[0] * s.t.dilation + groups[0]) * (s.h.length * s.w.length)
    return token


@triton.jit
@no_type_check
def exist(positions, groups, s: tl.constexpr):
    """Whether there is a token at a position."""
    result = positions[2] < group_length(groups[2], s.w)
    if s.axes > 1:
        result &= positions[1] < group_length(groups[1], s.h)
    if s.axes > 2:
        result &= positions[0] < group_length(groups[0], s.t)
    return result


@triton.jit
@no_type_check
def tokens_of(positions, groups, s: tl.constexpr):
    """Flat index of the tokens at some positions, and whether there are any."""
    return token_at(positions, groups, s), exist(positions, groups, s)


@triton.jit
@no_type_check
def chunk_start(chunk, starts, s: tl.constexpr):
    """Where a chunk begins, by its number among all of a slab."""
    w = starts[2] + chunk % s.w.num_chunks * s.w.chunk
    rest = chunk // s.w.num_chunks
    h = starts[1] + rest % s.h.num_chunks * s.h.chunk
    return starts[0] + rest // s.h.num_chunks * s.t.chunk, h, w


@triton.jit
@no_type_check
def met_along(reach_ptr, tile, axis: tl.constexpr, s: tl.constexpr):
    """First chunk that a tile meets along one of the three axes, and their number."""
    first = tl.full((), 0, tl.int32)
    count = tl.full((), 1, tl.int32)
    if axis >= 3 - s.axes:
        entry = reach_ptr + (tile * s.axes + axis - (3 - s.axes)) * 2
        first = tl.load(entry)
        count = tl.load(entry + 1)
    return first, count


@triton.jit
@no_type_check
def reach_of(reach_ptr, tile, s: tl.constexpr):
    """Which chunks of its slab a tile meets: the first along each axis, and their numbers."""
    if s.skips_chunks:
        ft, nt = met_along(reach_ptr, tile, 0, s)
        fh, nh = met_along(reach_ptr, tile, 1, s)
        fw, nw = met_along(reach_ptr, tile, 2, s)
        result = (ft, fh, fw), (nt, nh, nw), nt * nh * nw
    else:
        # What loops carry must not be a constant, even where they leave it alone.
        zero = tl.full((), 0, tl.int32)
        counts = (s.t.num_chunks, s.h.num_chunks, s.w.num_chunks)
        rounds = s.chunks
        if s.keeps_loop:
            # The same, since no chunk that is met first comes after the last; ptxas cannot know.
            rounds = tl.maximum(rounds, tl.load(reach_ptr))
        result = (zero, zero, zero), counts, rounds
    return result


@triton.jit
@no_type_check
def chunk_number(index, at, s: tl.constexpr):
    """Number among all chunks of a slab of the one that is walked over in a round.

    Where chunks are skipped, that is the one ``at`` these numbers along the axes.
    """
    met = (at[0] * s.h.num_chunks + at[1]) * s.w.num_chunks + at[2]
    return met if s.skips_chunks else index


@triton.jit
@no_type_check
def next_chunk(at, first, counts, s: tl.constexpr):
    """The chunk after one of those that a tile meets, by numbers along the axes.

    After the last comes the first. The number of a round says the same, by divisions by numbers
    that are not known before.
    """
    t, h, w = at
    if s.skips_chunks:
        w, over = step(w, 1, first[2], counts[2])
        if s.axes > 1:
            h, over = step(h, over, first[1], counts[1])
        if s.axes > 2:
            t, over = step(t, over, first[0], counts[0])
    return t, h, w


@triton.jit
@no_type_check
def step(number, by, first, count):
    """A number so many further on, or the first if it was the last; and whether it was."""
    moved = number + by
    over = moved == first + count
    return tl.where(over, first, moved), over.to(tl.int32)


@triton.jit
@no_type_check
def windows(queries, exists, groups, s: tl.constexpr):
    """First key that each query sees along the axes, and how many from there."""
    lt = group_length(groups[0], s.t)
    lh = group_length(groups[1], s.h)
    lw = group_length(groups[2], s.w)
    t = window_start(queries[0], lt, s.t)
    h = window_start(queries[1], lh, s.h)
    w = window_start(queries[2], lw, s.w)
    nt = window_size(queries[0], t, s.t)
    nh = window_size(queries[1], h, s.h)
    nw = tl.where(exists, window_size(queries[2], w, s.w), 0)
    return (t, h, w), (nt, nh, nw)


@triton.jit
@no_type_check
def window_size(query, start, axis: tl.constexpr):
    """How many keys a query sees along an axis."""
    return query + 1 - start if axis.is_causal else tl.full(query.shape, axis.kernel_size, tl.int32)


@triton.jit
@no_type_check
def across(queries, keys, rows_are_queries: tl.constexpr):
    """Something of queries and something of keys, laid out so that they meet in a block."""
    if rows_are_queries:
        result = queries[:, None], keys[None, :]
    else:
        result = queries[None, :], keys[:, None]
    return result


@triton.jit
@no_type_check
def sees_along(start, size, keys, rows_are_queries: tl.constexpr):
    """Which queries see which keys along an axis."""
    start, key = across(start, keys, rows_are_queries)
    size, _ = across(size, keys, rows_are_queries)
    # A key in front of the window is, without its sign, far behind it.
    return (key - start).to(tl.uint32) < size.to(tl.uint32)


@triton.jit
@no_type_check
def sees(starts, sizes, keys, rows_are_queries: tl.constexpr, s: tl.constexpr):
    """Which queries of a block see which of its keys."""
    result = sees_along(starts[2], sizes[2], keys[2], rows_are_queries)
    if s.axes > 1:
        result &= sees_along(starts[1], sizes[1], keys[1], rows_are_queries)
    if s.axes > 2:
        result &= sees_along(starts[0], sizes[0], keys[0], rows_are_queries)
    return result


@triton.jit
@no_type_check
def is_whole_along(row, column, group, axis: tl.constexpr, rows_are_queries: tl.constexpr):
    """Whether all rows of a tile and all columns of a chunk see one another along an axis."""
    length = group_length(group, axis)
    query = row if rows_are_queries else column
    queries = axis.tile if rows_are_queries else axis.chunk
    key = column if rows_are_queries else row
    keys = axis.chunk if rows_are_queries else axis.tile
    start = window_start(query, length, axis)
    end = query + 1 if axis.is_causal else start + axis.kernel_size
    last = window_start(tl.minimum(query + queries - 1, length - 1), length, axis)
    return (last <= key) & (key + keys <= end)


@triton.jit
@no_type_check
def is_whole(rows, columns, groups, rows_are_queries: tl.constexpr, s: tl.constexpr):
    """Whether all rows of a tile and all columns of a chunk see one another."""
    result = is_whole_along(rows[2], columns[2], groups[2], s.w, rows_are_queries)
    if s.axes > 1:
        result &= is_whole_along(rows[1], columns[1], groups[1], s.h, rows_are_queries)
    if s.axes > 2:
        result &= is_whole_along(rows[0], columns[0], groups[0], s.t, rows_are_queries)
    return result


@triton.jit
@no_type_check
def slot_of(positions, s: tl.constexpr):
    """Window slots counted from a position: the slot of a key is that of its less of the start."""
    return (positions[0] * s.h.kernel_size + positions[1]) * s.w.kernel_size + positions[2]


@triton.jit
@no_type_check
def table_block(table_ptr, head, kind, s: tl.constexpr):
    """Where the blocks of a kind of tile begin in the table, with the entries of the first."""
    first = (head * s.kinds + kind) * s.chunks if s.is_per_head else kind * s.chunks
    row = tl.arange(0, s.rows)[:, None] * s.columns
    pointer = table_ptr + first.to(tl.int64) * (s.rows * s.columns)
    return pointer + row + tl.arange(0, s.columns)[None, :]


@triton.jit
@no_type_check
def block_of_tile(table, kind, tile, head, s: tl.constexpr):
    """The same for the kind of a tile; where there is no table, nothing that is looked at."""
    return table_block(table, head, tl.load(kind + tile), s) if s.has_table else table


@triton.jit
@no_type_check
def product(a, b, acc, s: tl.constexpr):
    """``acc + a @ b`` in float32."""
    if s.is_threefold:
        a_large, a_small = halves(a)
        b_large, b_small = halves(b)
        part = tl.dot(a_small, b_large, input_precision="tf32")
        part = tl.dot(a_large, b_small, part, input_precision="tf32")
        part = tl.dot(a_large, b_large, part, input_precision="tf32")
        # Tensor cores round sums towards zero, which over thousands of columns would show.
        acc += part
    else:
        acc = tl.dot(a, b, acc, input_precision=s.precision)
    return acc


@triton.jit
@no_type_check
def halves(x):
    """The nearest TF32 to each float32 number, and what is left of it.

    TF32 has 13 bits less. What is left has one bit more than TF32, which tensor cores cut off.
    Triton's own "tf32x3" does the same with two instructions more for each number, and looks for
    nan in results: of the forward kernel's loop for NAT-Tiny's first stage, a third.
    """
    bits = x.to(tl.int32, bitcast=True)
    large = ((bits + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)
    return large, x - large


@triton.jit
@no_type_check
def product_of_block(block, b, acc, s: tl.constexpr):
    """``acc + block @ b`` in float32; ``b`` has the rows of `summed_columns_of`.

    Threads have a block as products of tensor cores leave it, two neighboring columns each, and
    products of TF32 want every fourth of their left operand. A sum over columns may take them in
    any order, so they are taken in one for which nothing need be moved between threads.
    """
    if s.is_threefold:
        pairs = block.reshape(s.rows, s.columns // 8, 4, 2)
        block = pairs.permute(0, 1, 3, 2).reshape(s.rows, s.columns)
    return product(block, b, acc, s)


@triton.jit
@no_type_check
def summed_columns_of(first, s: tl.constexpr):
    """Position of each column of a chunk, in the order in which `product_of_block` has them."""
    lane = tl.arange(0, s.columns)
    if s.is_threefold:
        lane = lane // 8 * 8 + lane % 4 * 2 + lane // 4 % 2
    return in_chunk(lane, first, s)
