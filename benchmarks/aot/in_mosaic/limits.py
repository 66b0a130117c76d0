"""What limits a kernel for Hopper: room on a multiprocessor, and floors of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.aot.chips import CHIPS
from benchmarks.aot.in_mosaic.cases import CHIP
from benchmarks.aot.in_triton import limits
from natjax.kernels.tuning.problems import Problem

# Problems with heads up to this size should have two multiplying warpgroups on a multiprocessor.
_SHARING_WIDTH = 64
# What a quarter of a multiprocessor does in a clock: an instruction of a warp, 4 exponentials, and
# 512 multiply-adds of half-precision matrices.
_EXPONENTIAL_CLOCKS = 32 / 4
_PRODUCTS_A_CLOCK = 512
# Registers of a multiprocessor, which threads have in eights, and its shared memory, of which the
# system takes a part for each block of threads.
_REGISTERS, _REGISTER_UNIT = 65536, 8
_SHARED, _SHARED_OF_SYSTEM = 228 * 1024, 1024


def blocks_of_multiprocessor(row: Mapping[str, Any]) -> tuple[int, int]:
    """Blocks of threads that a multiprocessor has room for: by registers, and by shared memory."""
    of_thread = -(-row["registers"] // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = _REGISTERS // (of_thread * 32 * row["warps"])
    return by_registers, _SHARED // (row["shared"] + _SHARED_OF_SYSTEM)


def clocks(row: Mapping[str, Any]) -> dict[str, float]:
    """What the loop takes of each of a multiprocessor's units, for a chunk of a warpgroup."""
    return {
        "instructions": row["loop"],
        "exponentials": row["exponentials"][0] * _EXPONENTIAL_CLOCKS,
        "products": row["products"][0] / _PRODUCTS_A_CLOCK,
    }


def too_few(problem: Problem, row: Mapping[str, Any]) -> bool:
    """Whether a multiprocessor has room for a single multiplying warpgroup, and should for more."""
    multiplying = math.prod(row["tile"]) // 64 * min(blocks_of_multiprocessor(row))
    return problem.head_dim <= _SHARING_WIDTH and multiplying < 2


def floors(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that a call takes at least on an H100, by what takes them."""
    chip = CHIPS[CHIP]
    products = row["executed"] / 2 / (chip.cores * 4 * _PRODUCTS_A_CLOCK * chip.clock_ghz * 1e9)
    return limits.floors(row, chip) | {"products": products}
