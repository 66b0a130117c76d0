"""Compile the kernels in Triton's language for A100, Ada, H100, B200 and RTX Blackwell.

    python -m benchmarks.aot.in_triton              # into results/aot_jax_triton.{md,json}
    python -m benchmarks.aot.in_triton --check      # some, against the committed table
    python -m benchmarks.aot.in_triton --only video # print those whose names have all of these

jax-triton makes PTX while JAX lowers, so XLA is not asked; ptxas and nvdisasm say what becomes of
it.
It needs the environment that ``scripts/aot-env`` makes; ``make aot`` sees to that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from benchmarks.aot import __main__ as aot
from benchmarks.aot import arguments, pool
from benchmarks.aot import report as aot_report
from benchmarks.aot.in_triton import compiler, report
from benchmarks.aot.in_triton.cases import all_cases, quick_cases

TABLE = aot_report.RESULTS / "aot_jax_triton.json"
DOCUMENT = aot_report.RESULTS / "aot_jax_triton.md"


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = arguments.parser("benchmarks.aot.in_triton", __doc__)
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    options = parser.parse_args()
    chosen = arguments.chosen(quick_cases() if options.check else all_cases(), options.only)
    known = read()
    rows = {}
    for case, row in zip(
        chosen, pool.run(compiler.compile_case, chosen, options.workers), strict=True
    ):
        rows[case.key] = row
        print(case.key, row, flush=True)
    if options.save or not (options.only or options.check):
        save(rows)
    failures = aot.failed(rows, known)
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
