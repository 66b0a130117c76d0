"""Compile the TPU kernels for v5e, v5p, v6e and tpu7x, on a machine that has none of them.

    python -m benchmarks.aot.tpu                     # all, into benchmarks/results/tpu.{md,json}
    python -m benchmarks.aot.tpu --check             # some, against the committed table
    python -m benchmarks.aot.tpu --only v5e stage1   # print those whose names have all of these
    python -m benchmarks.aot.tpu --only tpu7x --save # and put them into the table
    python -m benchmarks.aot.tpu --missing           # those that the table has not

It needs the environment that ``scripts/aot-env`` makes; ``make aot-tpu`` sees to that.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks.aot import arguments, pool
from benchmarks.aot.tpu import block, compiler, others, report
from benchmarks.aot.tpu.cases import all_cases, quick_cases, uncounted_cases

# That a case may take: XLA is slow at the gradients of "xla".
_SECONDS = 900


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = arguments.parser("benchmarks.aot.tpu", __doc__)
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    parser.add_argument("--missing", action="store_true", help="only what has no row yet")
    options = parser.parse_args()
    known = report.read()
    saves = options.save or not (options.only or options.check)
    rows: dict[str, report.Row] = {}
    for job, every in _jobs(options.check):
        cases = arguments.chosen(every, options.only)
        if options.missing:
            cases = [case for case in cases if case.key not in known]
        answers = pool.run(job, cases, options.workers, seconds=_SECONDS)
        for case, row in zip(cases, answers, strict=True):
            rows[case.key] = row
            print(case.key, row, flush=True)
            if saves and "error" not in row:
                save(rows)
    failed = report.failures(rows, known if options.check else {})
    if not options.only:
        failed |= moved(options.workers) | uncompiled(options.workers)
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return len(failed) > 0


def _jobs(is_check: bool) -> list[tuple[Callable[[Any], dict[str, Any]], Sequence[Any]]]:
    """What compiles cases, and which."""
    if is_check:
        return [(compiler.compile_case, quick_cases())]
    return [(compiler.compile_case, all_cases()), (others.compile_case, others.all_cases())]


def moved(workers: int) -> dict[str, str]:
    """Why each program of several ops that does not hand over its maps in place does not."""
    names = list(block.PROGRAMS)
    answers = zip(names, pool.run(block.check, names, workers), strict=True)
    return {name: x["error"] for name, x in answers if "error" in x}


def uncompiled(workers: int) -> dict[str, str]:
    """Why each case that has no row, and has only to compile, does not."""
    cases = uncounted_cases()
    answers = zip(cases, pool.run(compiler.only_compile, cases, workers), strict=True)
    return {case.key: x["error"] for case, x in answers if "error" in x}


def save(rows: dict[str, report.Row]) -> None:
    """Put rows into the table, in the order of all cases; those of cases that are no more go."""
    merged = report.read() | {key: row for key, row in rows.items() if "error" not in row}
    report.write({key: merged[key] for key in report.all_keys() if key in merged}, environment())


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    return {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }


if __name__ == "__main__":
    sys.exit(main())
