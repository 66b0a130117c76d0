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
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from benchmarks.aot import __main__ as aot
from benchmarks.aot import compiler, pool, sass
from benchmarks.aot import report as aot_report
from benchmarks.aot.cases import Case
from benchmarks.aot.chips import CHIPS
from benchmarks.aot.in_triton import counts, report
from benchmarks.aot.in_triton.cases import TARGETS, all_cases, quick_cases

TABLE = aot_report.RESULTS / "aot_jax_triton.json"
DOCUMENT = aot_report.RESULTS / "aot_jax_triton.md"


def compile_case(case: Case) -> dict[str, Any]:
    """What a kernel takes of a chip, and what it issues, loads and multiplies."""
    equation, operands = compiler.extract(case, CHIPS["h100"], "jax_triton")
    statics = equation.params["metaparams"]["s"]
    options = equation.params["backend_options"]
    row, text = _assembled(equation, operands, statics, case.chip)
    if row["shared"] > (most := TARGETS[case.chip][2]):
        return row | {"error": f"needs {row['shared']} bytes of shared memory; {most} are there"}
    row |= {
        "tile": counts.sides(statics, "tile"),
        "chunk": counts.sides(statics, "chunk"),
        "warps": options["num_warps"],
        "stages": options["num_stages"],
        "instructions": sass.length(text),
    }
    if case.kernel == "forward" and statics.looks_for_nan:
        # What is done only where a key is nan is not part of what is counted.
        usual = dataclasses.replace(statics, looks_for_nan=False)
        _, text = _assembled(equation, operands, usual, case.chip)
    variables = [*equation.invars, *equation.outvars]
    moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)
    work = counts.work_of(case, statics) | {"bytes": moved}
    return row | work | counts.counts_of(case, statics, work, options["num_warps"], text)


def _assembled(
    equation: Any, operands: Sequence[Any], statics: Any, chip: str
) -> tuple[dict[str, int], str]:
    """Registers, spills and shared memory of a kernel with these constants, and machine code."""
    from jax_triton import triton_lib

    capability, arch, _ = TARGETS[chip]
    params = equation.params | {"compute_capability": capability, "metaparams": {"s": statics}}
    with tempfile.TemporaryDirectory() as folder:
        triton_lib._JAX_TRITON_DUMP_DIR = folder
        run = jax.jit(lambda *xs: equation.primitive.bind(*xs, **params))
        run.trace(*operands).lower(lowering_platforms=("cuda",))
        (ptx,) = pathlib.Path(folder).glob("*/*.ptx")
        (info,) = pathlib.Path(folder).glob("*/*.compile_info")
        registers, spilled, text = compiler.assemble(str(ptx), arch)
        shared = int(info.read_text().split()[-1])
    return {"registers": registers, "spill": spilled, "shared": shared}, text


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
    DOCUMENT.write_text(report.document(kept, where))


def read() -> dict[str, Any]:
    """The committed rows, by `Case.key`."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    versions = {name.replace("-", "_"): metadata.version(name) for name in ("jax-triton", "triton")}
    return aot.environment() | versions | {"command": "python -m benchmarks.aot.in_triton"}


if __name__ == "__main__":
    sys.exit(main())
