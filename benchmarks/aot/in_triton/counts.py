"""What a kernel issues, loads and multiplies in a call, counted before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.aot import sass
from benchmarks.aot.cases import Case
from benchmarks.aot.in_triton import limits
from benchmarks.aot.in_triton.cases import sums_bias
from natjax.kernels.backends.jax_triton.config import KernelConfig
from natjax.kernels.plan.reach import num_blocks
from natjax.kernels.spec import PRODUCTS, blocks_of


def work_of(case: Case, statics: Any) -> dict[str, Any]:
    """Programs, the rounds of each, bytes loaded, and flops."""
    problem, kernel = case.problem, case.kernel
    config = KernelConfig(*(tuple(sides(statics, name)) for name in ("tile", "chunk")))
    blocks = blocks_of(kernel, config, problem.neighborhood)
    per_image = num_blocks(blocks) if statics.skips_chunks else statics.tiles * statics.chunks
    tiles, num_blocks_ = (x * problem.batch * problem.heads for x in (statics.tiles, per_image))
    if kernel == "dbias":
        programs = statics.splits * statics.kinds * statics.chunks * problem.heads
    elif is_summing(case):
        programs = statics.splits * statics.shares * problem.heads
    else:
        programs = tiles
    at_once = is_at_once(case, statics)
    table_bytes = (4 if case.dtype == "float32" else 2) * (statics.has_table and not at_once)
    pairs = problem.neighborhood.num_tokens * problem.neighborhood.num_neighbors
    flops = 2 * PRODUCTS[kernel]
    return {
        "programs": programs,
        "rounds": num_blocks_ / programs / (statics.chunks if at_once else 1),
        "loaded": limits.loaded(
            kernel,
            tiles=tiles,
            blocks=num_blocks_,
            rows=statics.rows,
            columns=statics.columns,
            row_bytes=problem.head_dim * (4 if case.dtype == "float32" else 2),
            table_bytes=0 if kernel == "dbias" else table_bytes,
        ),
        "useful": flops * pairs * problem.batch * problem.heads * problem.head_dim,
        "executed": flops * num_blocks_ * statics.rows * statics.columns * statics.padded_width,
    }


def counts_of(
    case: Case, statics: Any, work: Mapping[str, Any], warps: int, text: str
) -> dict[str, Any]:
    """What a warp issues, and what its loop has of exponentials and products, and needs."""
    every, loop = sass.whole(text), sass.main_loop(text)
    again = work["rounds"] - 1 if loop else 0
    found = {
        "issued": every.instructions + again * (loop.instructions if loop else 0),
        "exponentials_issued": every.exponentials + again * (loop.exponentials if loop else 0),
    }
    at_once = is_at_once(case, statics)
    if loop is None and not at_once:
        return found  # a loop that ptxas has unrolled as it saw fit
    counted = loop or every
    exponentials, products = sass.needed(
        case.kernel,
        statics.rows,
        statics.columns,
        statics.padded_width,
        warps,
        is_online=not at_once,
        times=3 if statics.is_threefold else 1,
    )
    chunks = statics.chunks if at_once else 1
    return found | {
        "loop": loop.instructions if loop else 0,
        "exponentials": [counted.exponentials, chunks * exponentials],
        "products": [counted.products, chunks * products],
    }


def is_summing(case: Case) -> bool:
    """Whether a case's kernel sums the gradient of the bias besides its own."""
    return case.kernel == "dquery" and sums_bias(case.problem, case.dtype)


def is_at_once(case: Case, statics: Any) -> bool:
    """Whether a case's kernel has all chunks of a slab at once, without a loop over them."""
    return is_summing(case) or (case.kernel == "forward" and statics.is_unrolled)


def sides(statics: Any, name: str) -> list[int]:
    """Of tiles or chunks, along the axes that there are."""
    axes = (statics.t, statics.h, statics.w)[3 - statics.axes :]
    return [getattr(axis, name) for axis in axes]
