"""The results as a document: what kernels take of each chip, what limits them, and the aims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.aot import report as aot_report
from benchmarks.aot.cases import Case
from benchmarks.aot.chips import CHIPS
from benchmarks.aot.in_triton import limits
from benchmarks.aot.in_triton.cases import TARGETS, all_cases, kernels_of, sums_bias
from natjax.kernels.spec import Kernel
from natjax.kernels.tuning.problems import Problem

type Rows = Mapping[str, Any]

_BACKWARD: tuple[Kernel, ...] = ("dquery", "dkeyvalue", "dbias")
# Issue of instructions over traffic of memory where windows are small, and executed over useful
# flops where they are large: forward, and forward and backward.
AIMS = ((1.3, 2.0), (1.35, 1.6))
LARGE_WINDOW = 900

_INTRODUCTION = """\
# The kernels in Triton's language, compiled for GPUs that were not there

    {command}

Compiled on {date} with jax {jax}, jax-triton {jax_triton}, triton {triton} and ptxas {ptxas}, on a
machine without a GPU: **nothing here was run, and no time was measured.** The problems are those of
[aot.md](aot.md).

## Registers, shared memory, instructions

Registers of a thread, shared memory, instructions of machine code, and instructions of the main
loop as one warp runs it; where a cell has none, there is no loop, or ptxas has unrolled it. (The
forward kernel is there twice where there is a table: the second time is for keys that are nan.
Without a table, a branch within the loop leaves the mask out for chunks that are seen whole.)
Exponentials and matrix products of the loop are what the block needs (three of TF32 for one of
float32), or the cell says in bold how many times that; Blackwell's `tcgen05` products are not
counted. "dquery*" also sums the gradient of the bias, in a loop over images. The last column is
"pallas_triton", whose blocks may differ.
"""

_LIMITS = """
## What limits them

Floors of a call in microseconds, and which is the highest: *issue*, the instructions of all warps
at four a clock and multiprocessor; *exp*, exponentials at sixteen; *L2*, what programs load (tokens
and, unless it is in registers or the L1 cache, the table) at 5120 bytes a clock, which is NVIDIA's
figure for an A100, taken for all (float32 kernels load some tokens twice, one after the other, the
second time from the L1 cache); *memory*, every operand read and every result written once at the
bandwidth of the data sheet. They come from counts and data sheets. No call can take less than the
highest of them; it may take much longer, since latency is in none.

"""

_AIMED = """
## Aims, on an H100

For small windows, the issue floor over the memory floor; for windows of {large} keys and more,
executed over useful flops. Each forward, and forward and backward. "Least" is what that figure
could be at best. For large windows that is with tiles of as many rows and slabs that fit what each
meets to the token: a tile of 128 queries meets more keys than its window has, however it is cut,
and one of 64 would reach further but load keys twice as often.

| problem | forward | least | aim | forward and backward | least | aim |
| --- | --- | --- | --- | --- | --- | --- |
"""


def document(rows: Rows, environment: Mapping[str, str]) -> str:
    """All of it in Markdown."""
    known = dict.fromkeys((case.problem, case.dtype) for case in all_cases())
    parts = [_INTRODUCTION.format(**environment)]
    parts += [_machine_code(rows, *each) for each in known]
    parts.append(_LIMITS)
    parts.append(_table([["problem", "kernel", *CHIPS], ["---"] * (2 + len(CHIPS))]))
    parts += [_limits(rows, *each) for each in known]
    parts.append(_AIMED.format(large=LARGE_WINDOW))
    parts += [_aims(rows, *each) for each in known]
    return "".join(parts)


def _machine_code(rows: Rows, problem: Problem, dtype: str) -> str:
    lines = [["kernel", "tile", "chunk", "warps, stages", *TARGETS, "pallas_triton, h100"]]
    lines.append(["---"] * len(lines[0]))
    pallas = aot_report.read()
    for kernel in kernels_of(problem, dtype):
        found = [_row(rows, problem, dtype, kernel, chip) for chip in TARGETS]
        if not (first := next((x for x in found if x and "tile" in x), None)):
            continue
        sides = ["x".join(map(str, first[name])) for name in ("tile", "chunk")]
        old = _row(pallas, problem, dtype, kernel, "h100")
        lines.append(
            [
                f"{kernel}*" if kernel == "dquery" and sums_bias(problem, dtype) else kernel,
                *sides,
                f"{first['warps']}, {first['stages']}",
                *map(_cell, found),
                f"{old['registers']} reg, {old['instructions']} ins" if old else "",
            ]
        )
    return f"\n### {problem.name}, {dtype}\n\n{_table(lines)}"


def _limits(rows: Rows, problem: Problem, dtype: str) -> str:
    lines = []
    for kernel in kernels_of(problem, dtype):
        found = [_row(rows, problem, dtype, kernel, chip) for chip in CHIPS]
        if not any(found):
            continue
        lines.append([f"{problem.name}, {dtype}", kernel, *map(_floors, found, CHIPS)])
    return _table(lines)


def _floors(row: Mapping[str, Any] | None, chip: str) -> str:
    if not row or "issued" not in row:
        return ""
    floors = limits.floors(row, CHIPS[chip])
    highest = limits.limiter(floors)
    return ", ".join(
        f"**{name} {1e6 * seconds:.0f}**" if name == highest else f"{name} {1e6 * seconds:.0f}"
        for name, seconds in floors.items()
    )


def _aims(rows: Rows, problem: Problem, dtype: str) -> str:
    kernels = [x for x in kernels_of(problem, dtype) if x in ("forward", *_BACKWARD)]
    found = [_row(rows, problem, dtype, kernel, "h100") for kernel in kernels]
    if not all(row and "issued" in row for row in found):
        return ""
    is_large = problem.neighborhood.num_neighbors >= LARGE_WINDOW
    ratio = executed_over_useful if is_large else issue_over_memory
    cells = [f"{problem.name}, {dtype}"]
    for count, aim in zip((1, len(kernels)), AIMS[is_large], strict=True):
        part = dict(zip(kernels[:count], found[:count], strict=True))
        reached, least = ratio(list(part.values())), _least(problem, part) if is_large else ""
        cells += [f"{reached:.2f}" if reached <= aim else f"**{reached:.2f}**", least, f"{aim}"]
    return _table([cells])


def _least(problem: Problem, rows: Mapping[Kernel, Any]) -> str:
    useful = sum(row["useful"] for row in rows.values())
    computed = sum(
        row["useful"] * limits.least_computed(kernel, problem.neighborhood, math.prod(row["tile"]))
        for kernel, row in rows.items()
    )
    return f"{computed / useful:.2f}"


def issue_over_memory(rows: list[Any]) -> float:
    """How many times as long kernels issue instructions as they move what they must, on an H100."""
    floors = limits.total(rows, CHIPS["h100"])
    return floors["issue"] / floors["memory"]


def executed_over_useful(rows: list[Any]) -> float:
    """How many times as many flops kernels do as pairs of query and neighbor take."""
    return sum(row["executed"] for row in rows) / sum(row["useful"] for row in rows)


def _row(
    rows: Rows, problem: Problem, dtype: str, kernel: Kernel, chip: str
) -> Mapping[str, Any] | None:
    return rows.get(Case(problem=problem, dtype=dtype, kernel=kernel, chip=chip).key)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return f"**{row['error']}**"
    spill = f"**{row['spill']} B spilled**, " if row["spill"] else ""
    text = (
        f"{spill}{row['registers']} reg, {row['shared'] / 1024:.0f} KiB, {row['instructions']} ins"
    )
    if not row.get("loop"):
        return text
    return f"{text}, loop {row['loop']}{aot_report.repeated(row)}"


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
