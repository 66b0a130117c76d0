"""Compile the GPU kernels for A100, H100 and B200, on a machine that has none of them.

    python -m benchmarks.aot                         # all, into benchmarks/results/aot.{md,json}
    python -m benchmarks.aot --check                 # a minute's worth, against the committed table
    python -m benchmarks.aot --only video h100       # print those whose names have all of these
    python -m benchmarks.aot --only dbias --save     # and put them into the table

It needs the environment that ``scripts/aot-env`` makes; ``make aot`` and ``make aot-check`` see to
that. What compiles need not compute the right thing: that is for the tests.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Sequence

import jax

from benchmarks.aot import arguments, compiler, layouts, pool, report
from benchmarks.aot.cases import Case, all_cases, quick_cases

_ADVICE = """\
Kernels that do not fit: give `budget` and `warps` in kernels/backends/triton_common/config.py
smaller blocks or more warps for such shapes, or make the kernel smaller; see how it stands with
    .venv-aot/bin/python -m benchmarks.aot --only {example}
If a spill is to be lived with, `make aot` writes it down and commits are compared with that.\
"""


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = arguments.parser("benchmarks.aot", __doc__)
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    options = parser.parse_args()
    cases = arguments.chosen(quick_cases() if options.check else all_cases(), options.only)
    rows = compile_all(cases, options.workers)
    failures = failed(rows, report.read())
    if not options.only:
        failures |= moved(options.workers)
    if options.save or not (options.only or options.check):
        save(rows)
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    if failures:
        print(_ADVICE.format(example=next(iter(failures)).replace("/", " ")), file=sys.stderr)
    return len(failures) > 0


def compile_all(cases: Sequence[Case], workers: int) -> dict[str, report.Row]:
    """Rows of the table, by `Case.key`; prints each as it is there."""
    rows = {}
    for case, row in zip(cases, pool.run(compiler.compile_case, cases, workers), strict=True):
        rows[case.key] = row
        print(case.key, {k: v for k, v in row.items() if k not in ("bytes", "useful", "executed")})
        sys.stdout.flush()
    return rows


def failed(rows: dict[str, report.Row], known: dict[str, report.Row]) -> dict[str, str]:
    """Why each case that failed did: an error, or more than in a table before.

    That is of spilled registers, or of exponentials and matrix products that are done again.
    """
    reasons = {}
    for key, row in rows.items():
        before = known.get(key, {})
        allowed = before.get("spill", 0)
        if "error" in row:
            reasons[key] = row["error"]
        elif row["spill"] > allowed:
            reasons[key] = f"spills {row['spill']} bytes of registers; {allowed} are known"
        elif excess := _excess(row, before):
            reasons[key] = excess
    return reasons


def _excess(row: report.Row, before: report.Row) -> str | None:
    for name in report.REPEATABLE:
        counted, needed = row.get(name, (0, 0))
        if counted > max(needed, before.get(name, (0, 0))[0]):
            return f"does {counted} {name} in its loop, where {needed:g} are needed"
    return None


def save(rows: dict[str, report.Row]) -> None:
    """Put rows into the table, in the order of all cases; those of cases that are no more go."""
    known = report.read() | rows
    keys = [case.key for case in all_cases()]
    report.write({key: known[key] for key in keys if key in known}, environment())


def moved(workers: int) -> dict[str, str]:
    """Why each program that does not read its arguments in place does not."""
    cases = layouts.cases()
    answers = zip(cases, pool.run(layouts.check, cases, workers), strict=True)
    return {f"program of {case.key}": x["error"] for case, x in answers if "error" in x}


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    version = compiler.run_tool("ptxas", "--version").stdout
    (ptxas,) = re.findall(r"release [\d.]+, V([\d.]+)", version)
    return {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "ptxas": ptxas,
        "command": "make aot",
    }


if __name__ == "__main__":
    sys.exit(main())
