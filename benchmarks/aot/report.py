"""The results as a document, and as a table that later runs are compared with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.aot.cases import PROBLEMS, Case, kernels_of
from benchmarks.aot.chips import CHIPS
from natjax.kernels.spec import Kernel
from natjax.kernels.tuning.problems import Problem

type Row = dict[str, Any]

RESULTS = pathlib.Path(__file__).parents[1] / "results"
TABLE = RESULTS / "aot.json"
DOCUMENT = RESULTS / "aot.md"
# What warps do again where there are too many of them for the rows of a block: of a row, how many
# there are in its loop, and how many it needs.
REPEATABLE = ("exponentials", "products")
# The H100's data sheet: bytes a second of device memory, and flops a second of its tensor cores.
_BANDWIDTH = 3.35e12
_MATRIX_RATE = 989e12
# The same of float32, by three products of TF32 or by none.
_FLOAT32_RATES = {True: _MATRIX_RATE / 6, False: 67e12}

_INTRODUCTION = """\
# The kernels, compiled for GPUs that were not there

    make aot

Compiled on {date} with jax {jax} and ptxas {ptxas}, on a machine without a GPU: **nothing here was
run, and no time below was measured.** Every kernel compiles in a process of its own, with register
spills as errors. Blocks, warps and stages are those of
`natjax.kernels.backends.triton_common.config`.

Problems are `natjax.kernels.tuning.problems` at batch 128, and those of `benchmarks/aot/cases.py`.
"""

_MACHINE_CODE = """
## Registers, shared memory, instructions

For each chip: registers a thread, shared memory, instructions of machine code, and how many of the
PTX instructions are matrix products (`mma` is mma.sync, `wgmma` Hopper's, `tcgen05` Blackwell's).
A kernel that spills says so in bold, and so does one whose main loop has more exponentials or
matrix products than its blocks need, as it has where warps repeat each other's. (Products of
`tcgen05`, and those of loops that ptxas has unrolled, are not counted.)
"""

_TRAFFIC = """
## Bytes and flops of NAT's stages, and what an H100 could do with them

*Bytes*: every operand of the kernel read once and every result written once. *Useful* flops are
those of pairs of query and neighbor, *executed* those of all entries of the blocks. The times are
bytes at 3.35 TB/s, and executed flops at 989 TFLOP/s (bfloat16), 165 TFLOP/s (float32 by three
products of TF32) or 67 TFLOP/s (float32 as it is): lower bounds from a data sheet, not
measurements.
"""


def write(rows: Mapping[str, Row], environment: Mapping[str, str]) -> None:
    """Write the table and the document."""
    RESULTS.mkdir(exist_ok=True)
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in rows.items())
    text = f'{{"environment": {json.dumps(dict(environment))},\n "rows": {{\n{lines}\n}}}}\n'
    TABLE.write_text(text)
    DOCUMENT.write_text(document(rows, environment))


def read() -> dict[str, Row]:
    """The committed rows, by `Case.key`."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def document(rows: Mapping[str, Row], environment: Mapping[str, str]) -> str:
    """All of it in Markdown."""
    return "".join(
        [
            _INTRODUCTION.format(**environment),
            _MACHINE_CODE,
            _machine_code(rows),
            _TRAFFIC,
            _traffic(rows),
        ]
    )


def _machine_code(rows: Mapping[str, Row]) -> str:
    lines = [["kernel", "tile", "chunk", "warps, stages", *CHIPS], ["---"] * (4 + len(CHIPS))]
    parts = []
    for problem, dtype in PROBLEMS:
        body = []
        for kernel in kernels_of(problem):
            cells = [_row(rows, problem, dtype, kernel, chip) for chip in CHIPS]
            if known := [cell for cell in cells if cell and "tile" in cell]:
                body.append([kernel, *_config(known[0]), *map(_cell, cells)])
        if body:
            parts.append(f"\n### {problem.name}, {dtype}\n\n{_describe(problem)}\n\n")
            parts.append(_markdown([*lines, *body]))
    return "".join(parts)


def _traffic(rows: Mapping[str, Row]) -> str:
    header = ["problem", "kernel", "MB", "useful GFLOP", "executed GFLOP", "µs, bytes", "µs, flops"]
    lines = [
        _bounds(f"{problem.name}, {dtype}", kernel, dtype, row)
        for problem, dtype in PROBLEMS
        for kernel in kernels_of(problem)
        if (row := _row(rows, problem, dtype, kernel, "h100")) and "error" not in row
    ]
    return "\n" + _markdown([header, ["---"] * len(header), *lines])


def _bounds(name: str, kernel: Kernel, dtype: str, row: Row) -> list[str]:
    rate = _FLOAT32_RATES[bool(row["matrix"])] if dtype == "float32" else _MATRIX_RATE
    return [
        name,
        kernel,
        f"{row['bytes'] / 1e6:.0f}",
        f"{row['useful'] / 1e9:.1f}",
        f"{row['executed'] / 1e9:.1f}",
        f"{row['bytes'] / _BANDWIDTH * 1e6:.0f}",
        f"{row['executed'] / rate * 1e6:.0f}",
    ]


def _row(
    rows: Mapping[str, Row], problem: Problem, dtype: str, kernel: Kernel, chip: str
) -> Row | None:
    return rows.get(Case(problem=problem, dtype=dtype, kernel=kernel, chip=chip).key)


def _describe(problem: Problem) -> str:
    def size(sides: tuple[int, ...]) -> str:
        return "x".join(map(str, sides))

    return (
        f"{problem.batch} of {size(problem.shape)} tokens, window {size(problem.kernel_size)}, "
        f"dilation {problem.dilation}, {problem.heads} heads of {problem.head_dim}, "
        f"{'with' if problem.rpb else 'without'} bias."
    )


def _config(row: Row) -> list[str]:
    sides = ["x".join(map(str, row[name])) for name in ("tile", "chunk")]
    return [*sides, f"{row['warps']}, {row['stages']}"]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return f"**{row['error']}**"
    matrix = ", ".join(f"{count} {name}" for name, count in row["matrix"].items())
    spill = f"**{row['spill']} B spilled**, " if row["spill"] else ""
    return (
        f"{spill}{row['registers']} reg, {row['shared'] / 1024:.0f} KiB, "
        f"{row['instructions']} ins, {matrix or 'no matrix products'}{repeated(row)}"
    )


def repeated(row: Mapping[str, Any]) -> str:
    """How many times what it needs a kernel's loop does, where that is more than once."""
    return "".join(
        f", **{row[name][0] / row[name][1]:.1f}x {name}**"
        for name in REPEATABLE
        if name in row and row[name][1] and row[name][0] > row[name][1]
    )


def _markdown(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
