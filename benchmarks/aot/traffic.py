"""What a kernel must move and multiply, and what it does, from shapes and blocks alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from natjax.kernels.backends.triton_common.config import (
    KernelConfig,
    padded_head_dim,
    skips_chunks,
)
from natjax.kernels.plan.reach import num_blocks
from natjax.kernels.spec import PRODUCTS, Kernel, blocks_of
from natjax.kernels.tuning.problems import Problem


def of(
    kernel: Kernel, problem: Problem, config: KernelConfig, variables: Sequence[Any]
) -> dict[str, int]:
    """Bytes and flops of a kernel.

    Args:
      kernel: its name.
      problem: what it is run on.
      config: its blocks.
      variables: its operands and results.

    Returns:
      "bytes": every operand read once and every result written once. "useful": flops of the pairs
      of query and neighbor. "executed": flops of all entries of blocks, with heads padded.
    """
    blocks = blocks_of(kernel, config, problem.neighborhood)
    pairs = problem.neighborhood.num_tokens * problem.neighborhood.num_neighbors
    # The bias gradient sums whole slabs.
    skips = kernel != "dbias" and skips_chunks(blocks)
    count = num_blocks(blocks) if skips else blocks.num_tiles * blocks.num_chunks
    computed = count * blocks.num_rows * blocks.num_columns
    products = PRODUCTS[kernel] * 2 * problem.batch * problem.heads
    padded = padded_head_dim(problem.head_dim)
    return {
        "bytes": sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables),
        "useful": products * pairs * problem.head_dim,
        "executed": products * computed * padded,
    }
