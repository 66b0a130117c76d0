"""The results as a document: what kernels take of an H100, what limits them, and the aims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.aot.cases import FUSED
from benchmarks.aot.in_mosaic import limits
from benchmarks.aot.in_mosaic.cases import kernels_of, problems
from benchmarks.aot.in_mosaic.compiler import SPLIT
from benchmarks.aot.in_triton import limits as triton_limits
from benchmarks.aot.in_triton.report import (
    AIMS,
    LARGE_WINDOW,
    executed_over_useful,
    issue_over_memory,
)
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.spec import Kernel
from natjax.kernels.tuning.problems import Problem

type Rows = Mapping[str, Any]

_INTRODUCTION = """\
# The kernels for Hopper, compiled for an H100 that was not there

    {command}

Compiled on {date} with jax {jax} and ptxas {ptxas}, on a machine without a GPU: **nothing here was
run, and no time was measured.** bfloat16; the problems are those of [aot.md](aot.md).

With 4 warps, one warpgroup multiplies and copies for itself; with 8, another copies; with 12, two
multiply and another copies. Registers of a thread as ptxas gives them, and bytes that spill; with
12 warps the kernel then gives threads that multiply 232 of the registers, and those that copy 40.
*Blocks* are those that a multiprocessor has room for at once, by its registers and its shared
memory. Copies are the instructions that copy a line or a box of tokens, or a line of the table.
*Clocks of a chunk* are those that the loop over chunks takes of a quarter of a multiprocessor, for
one warpgroup and one chunk: instructions at one a clock, exponentials at 4 lanes a clock,
multiply-adds of matrix products at 512. The largest limits a kernel that waits for nothing else;
memory is not among them.
Where a warpgroup copies for itself, its loop has the instructions that copy the next chunk, which
all of its warps go through though one thread copies; where another copies, it has as many, which
are not counted here.

The first problem, forward and backward, is compiled for eight H100 as well, with batch and heads
split {split}. All that they exchange is the sum of the bias' gradient, by the blocks of its table:
{exchanged}.
"""

_LIMITS = """
## What limits them

Floors of a call in microseconds, and which is the highest: *issue*, the instructions of all warps
at four a clock and multiprocessor, those that copy among them; *exp*, exponentials at sixteen;
*products*, multiply-adds of matrices at 2048; *L2*, what blocks of threads load (tokens and the
table) at 5120 bytes a clock, which is NVIDIA's figure for an A100; *memory*, every operand read and
every result written once at the bandwidth of the data sheet. They come from counts and data sheets.
No call can take less than the highest of them; it may take much longer, since latency is in none.
Code that is not in a loop counts for both kinds of warpgroups, and a mask for all chunks, though
those that are seen whole leave it out.

| problem | kernel | floors |
| --- | --- | --- |
"""

_AIMED = """
## Aims

For small windows, the issue floor over the memory floor; for windows of {large} keys and more,
executed over useful flops. Each forward, and forward and backward. "Least" is what that figure
could be at best, with boxes of 64 rows that compute no column which none of their rows sees. Each
of two warpgroups computes the chunks that its own 64 rows of a tile meet.

| problem | forward | least | aim | forward and backward | least | aim |
| --- | --- | --- | --- | --- | --- | --- |
"""


def document(
    rows: Mapping[str, Any], devices: Mapping[str, Any], environment: Mapping[str, str]
) -> str:
    """All of it in Markdown."""
    split = " by ".join(map(str, SPLIT))
    exchanged = "; ".join(devices.get("exchanged", ["?"]))
    parts = [_INTRODUCTION.format(**environment, split=split, exchanged=exchanged)]
    for problem in problems(quick=False):
        lines = [_HEADER, ["---"] * len(_HEADER)]
        for kernel in kernels_of(problem):
            row = rows.get(f"{problem.name}/{kernel}")
            if row is not None:
                lines.append(_line(kernel, row))
        parts.append(f"\n## {problem.name}\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines))
    every = problems(quick=False)
    parts += [_LIMITS, *(_floors(rows, problem) for problem in every)]
    parts += [_AIMED.format(large=LARGE_WINDOW), *(_aims(rows, problem) for problem in every)]
    return "".join(parts)


_HEADER = [
    "kernel",
    "tile",
    "chunk",
    "warps, stages",
    "registers",
    "shared",
    "blocks",
    "instructions",
    "copies",
    "clocks of a chunk",
    "limiter",
]


def _line(kernel: str, row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [kernel, f"**{row['error']}**", *[""] * (len(_HEADER) - 2)]
    sides = ["x".join(map(str, row[name])) for name in ("tile", "chunk")]
    where = " in the loop" if row.get("loop_spills") else " outside of the loop"
    spill = f", **{row['spill']} B spilled**{where}" if row["spill"] else ""
    cells = [
        kernel,
        *sides,
        f"{row['warps']}, {row['stages']}",
        f"{row['registers']}{spill}",
        f"{row['shared'] / 1024:.0f} KiB",
        str(min(limits.blocks_of_multiprocessor(row))),
        str(row["instructions"]),
        str(row["copies"]),
    ]
    if "loop" not in row:
        return [*cells, "", ""]
    taken = limits.clocks(row)
    told = ", ".join(f"{name} {value:.0f}" for name, value in taken.items())
    return [*cells, told, max(taken, key=lambda name: taken[name])]


def _floors(rows: Rows, problem: Problem) -> str:
    lines = []
    for kernel in kernels_of(problem):
        row = rows.get(f"{problem.name}/{kernel}", {})
        if "issued" in row:
            floors = limits.floors(row)
            highest = triton_limits.limiter(floors)
            told = (f"{name} {1e6 * seconds:.0f}" for name, seconds in floors.items())
            cells = (f"**{x}**" if x.startswith(f"{highest} ") else x for x in told)
            lines.append(f"| {problem.name} | {kernel} | {', '.join(cells)} |\n")
    return "".join(lines)


def _aims(rows: Rows, problem: Problem) -> str:
    kernels = [x for x in kernels_of(problem) if x in FUSED]
    found = [rows.get(f"{problem.name}/{kernel}", {}) for kernel in kernels]
    if not all("issued" in row for row in found):
        return ""
    is_large = problem.neighborhood.num_neighbors >= LARGE_WINDOW
    ratio = executed_over_useful if is_large else issue_over_memory
    cells = [problem.name]
    for count, aim in zip((1, len(kernels)), AIMS[is_large], strict=True):
        reached = ratio(found[:count])
        least = _least(problem, kernels[:count], found[:count]) if is_large else ""
        cells += [f"{reached:.2f}" if reached <= aim else f"**{reached:.2f}**", least, f"{aim}"]
    return f"| {' | '.join(cells)} |\n"


def _least(problem: Problem, kernels: list[Kernel], rows: list[Any]) -> str:
    computed = sum(
        row["useful"] * triton_limits.least_computed(kernel, problem.neighborhood, GROUP_ROWS)
        for kernel, row in zip(kernels, rows, strict=True)
    )
    return f"{computed / sum(row['useful'] for row in rows):.2f}"
