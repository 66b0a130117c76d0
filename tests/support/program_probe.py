"""Kernels in Triton's language that look at parts of those of natjax."""

from typing import no_type_check

import triton
import triton.language as tl

from natjax.kernels.backends.jax_triton.language.program import (
    chunk_number,
    locate,
    next_chunk,
    reach_of,
    window_start,
)


@triton.jit
@no_type_check
def located(tiles, groups, firsts, starts, axis: tl.constexpr, n: tl.constexpr):
    for i in range(n):
        group, first, start = locate(tl.load(tiles + i), axis)
        tl.store(groups + i, group)
        tl.store(firsts + i, first)
        tl.store(starts + i, start)


@triton.jit
@no_type_check
def started(queries, lengths, starts, axis: tl.constexpr, n: tl.constexpr):
    for i in range(n):
        tl.store(starts + i, window_start(tl.load(queries + i), tl.load(lengths + i), axis))


@triton.jit
@no_type_check
def shifted(x, out, shift: tl.constexpr):
    for i in range(8):
        tl.store(out + i + shift, tl.load(x + i))


@triton.jit
@no_type_check
def walked(reach, numbers, s: tl.constexpr, tile: tl.constexpr, rounds: tl.constexpr):
    """Numbers of the chunks that a loop over those of a tile goes through."""
    first, counts, _ = reach_of(reach, tile, s)
    at = first
    for index in range(rounds):
        tl.store(numbers + index, chunk_number(index, at, s))
        at = next_chunk(at, first, counts, s)
