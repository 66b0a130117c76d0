"""Compile the kernels in Triton's language for A100, Ada, H100, B200 and RTX Blackwell.

    python -m benchmarks.aot.in_triton              # into results/aot_jax_triton.{md,json}
    python -m benchmarks.aot.in_triton --check      # some, against the committed table
    python -m benchmarks.aot.in_triton --only video # print those whose names have all of these

jax-triton makes PTX while JAX lowers, so XLA is not asked; ptxas and nvdisasm say what becomes of
it.
It needs the environment that ``scripts/aot-env`` makes; ``make aot`` sees to that.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from benchmarks.aot import __main__ as aot
from benchmarks.aot import cases, compiler, pool, report, sass
from benchmarks.aot.chips import CHIPS

TABLE = report.RESULTS / "aot_jax_triton.json"
DOCUMENT = report.RESULTS / "aot_jax_triton.md"
# Compute capability, ptxas' name, and the bytes of shared memory that a block may have.
TARGETS = {
    "a100": (80, "sm_80", 166_912),
    "ada": (89, "sm_89", 101_376),
    "h100": (90, "sm_90a", 232_448),
    "b200": (100, "sm_100a", 232_448),
    "rtx5090": (120, "sm_120a", 101_376),
}
_PROBLEMS = (
    "nat_tiny-stage1-d1",
    "nat_tiny-stage3-d1",
    "heads-of-128",
    "image-256",
)
_QUICK = ("nat_tiny-stage1-d1",)


def all_cases() -> list[cases.Case]:
    """Every case, problem by problem."""
    return [
        cases.Case(problem=problem, dtype=dtype, kernel=kernel, chip=chip)
        for problem, dtype in cases.PROBLEMS
        if problem.name in _PROBLEMS and dtype == "bfloat16"
        for kernel in cases.kernels_of(problem)
        for chip in TARGETS
    ]


def quick_cases() -> list[cases.Case]:
    """Each kernel for the two chips that differ most, and the forward kernel for all."""
    return [
        case
        for case in all_cases()
        if case.problem.name in _QUICK
        and (case.chip in ("a100", "h100") or case.kernel == "forward")
    ]


def compile_case(case: cases.Case) -> dict[str, Any]:
    """What a kernel takes of a chip, and what it does in its loop over chunks."""
    from jax_triton import triton_lib

    equation, operands = compiler.extract(case, CHIPS["h100"], "jax_triton")
    capability, arch, most_shared = TARGETS[case.chip]
    params = {**equation.params, "compute_capability": capability}
    with tempfile.TemporaryDirectory() as folder:
        triton_lib._JAX_TRITON_DUMP_DIR = folder
        run = jax.jit(lambda *xs: equation.primitive.bind(*xs, **params))
        run.trace(*operands).lower(lowering_platforms=("cuda",))
        (ptx,) = pathlib.Path(folder).glob("*/*.ptx")
        (shared,) = pathlib.Path(folder).glob("*/*.compile_info")
        registers, spilled, text = compiler.assemble(str(ptx), arch)
        row = {
            "registers": registers,
            "spill": spilled,
            "shared": int(shared.read_text().split()[-1]),
        }
    if row["shared"] > most_shared:
        return row | {"error": f"needs {row['shared']} bytes of shared memory"}
    options = params["backend_options"]
    statics = params["metaparams"]["s"]
    warps = options["num_warps"]
    row |= {"tile": _sides(statics, "tile"), "chunk": _sides(statics, "chunk")}
    row |= {"warps": warps, "stages": options["num_stages"], "instructions": sass.length(text)}
    loop = sass.main_loop(text)
    if loop is None:
        return row
    exponentials, products = sass.needed(
        case.kernel, statics.rows, statics.columns, statics.padded_width, warps
    )
    return row | {
        "loop": loop.instructions,
        "exponentials": [loop.exponentials, exponentials],
        "products": [loop.products, products],
    }


def _sides(statics: Any, name: str) -> list[int]:
    axes = (statics.t, statics.h, statics.w)[3 - statics.axes :]
    return [getattr(axis, name) for axis in axes]


def failed(rows: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Why each case that failed did: an error, a new spill, or work that is done more than once."""
    reasons = {}
    for key, row in rows.items():
        before = known.get(key, {})
        if "error" in row:
            reasons[key] = row["error"]
        elif row["spill"] > before.get("spill", 0):
            reasons[key] = f"spills {row['spill']} bytes of registers"
        elif excess := _excess(row, before):
            reasons[key] = excess
    return reasons


def _excess(row: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    for name in ("exponentials", "products"):
        counted, needed = row.get(name, (0, 0))
        if counted > max(needed, before.get(name, (0, 0))[0]):
            return f"does {counted} {name} in its loop, where {needed:g} are needed"
    return None


def document(rows: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """All of it in Markdown."""
    pallas = report.read()
    parts = [_INTRODUCTION.format(**environment)]
    for problem in dict.fromkeys(case.problem for case in all_cases()):
        lines = [["kernel", "tile", "chunk", "warps, stages", *TARGETS, "pallas_triton, h100"]]
        lines.append(["---"] * len(lines[0]))
        for kernel in cases.kernels_of(problem):
            keys = [f"{problem.name}/bfloat16/{kernel}/{chip}" for chip in TARGETS]
            found = [rows.get(key) for key in keys]
            if not (first := next((x for x in found if x and "tile" in x), None)):
                continue
            sides = ["x".join(map(str, first[name])) for name in ("tile", "chunk")]
            old = pallas.get(f"{problem.name}/bfloat16/{kernel}/h100", {})
            lines.append(
                [
                    kernel,
                    *sides,
                    f"{first['warps']}, {first['stages']}",
                    *map(_cell, found),
                    f"{old['registers']} reg, {old['instructions']} ins" if old else "",
                ]
            )
        parts.append(f"\n### {problem.name}\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines))
    return "".join(parts)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if "error" in row:
        return f"**{row['error']}**"
    spill = f"**{row['spill']} B spilled**, " if row["spill"] else ""
    text = (
        f"{spill}{row['registers']} reg, {row['shared'] / 1024:.0f} KiB, {row['instructions']} ins"
    )
    if "loop" not in row:
        return text
    more = [
        f"{row[name][0] / row[name][1]:.1f}x {name}"
        for name in ("exponentials", "products")
        if row[name][1] and row[name][0] > row[name][1]
    ]
    return f"{text}, loop {row['loop']}" + "".join(f", **{x}**" for x in more)


_INTRODUCTION = """\
# The kernels in Triton's language, compiled for GPUs that were not there

    {command}

Compiled on {date} with jax {jax}, jax-triton {jax_triton}, triton {triton} and ptxas {ptxas}, on a
machine without a GPU: **nothing here was run, and no time was measured.** bfloat16; the problems
are those of [aot.md](aot.md).

Registers of a thread, shared memory, instructions of machine code, and instructions of the loop
over chunks as one warp runs it; where a cell has none, ptxas has unrolled it. (The forward kernel
has that loop twice where there is a table: the second is for keys that are nan. Without a table, a
branch within it leaves the mask out for chunks that are seen whole.) Exponentials and matrix
products of the loop are what the block needs, or the cell says in bold how many times that;
Blackwell's `tcgen05` products are not counted. The last column is "pallas_triton", with the same
blocks; warps and stages may differ.
"""


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.in_triton",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare some with the table")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts of names")
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = quick_cases() if options.check else all_cases()
    chosen = [case for case in chosen if all(part in case.key for part in options.only)]
    known = read() if options.check else {}
    rows = {}
    for case, row in zip(chosen, pool.run(compile_case, chosen, options.workers), strict=True):
        rows[case.key] = row
        print(case.key, row, flush=True)
    if options.save or not (options.only or options.check):
        save(rows)
    failures = failed(rows, known)
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return len(failures) > 0


def save(rows: Mapping[str, Any]) -> None:
    """Put rows into the table, in the order of all cases; those of cases that are no more go."""
    known = read() | dict(rows)
    kept = {case.key: known[case.key] for case in all_cases() if case.key in known}
    where = environment()
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in kept.items())
    TABLE.write_text(f'{{"environment": {json.dumps(where)},\n "rows": {{\n{lines}\n}}}}\n')
    DOCUMENT.write_text(document(kept, where))


def read() -> dict[str, Any]:
    """The committed rows, by `Case.key`."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    versions = {name.replace("-", "_"): metadata.version(name) for name in ("jax-triton", "triton")}
    return aot.environment() | versions | {"command": "python -m benchmarks.aot.in_triton"}


if __name__ == "__main__":
    sys.exit(main())
