"""Compile the training step for 8 H100 and for TPU slices, on a machine that has none of them.

    python -m benchmarks.aot.step                # all, into benchmarks/results/aot_step.{md,json}
    python -m benchmarks.aot.step --check        # a small one a machine, with its collectives
    python -m benchmarks.aot.step --only nat_tiny --missing

It needs the environment that ``scripts/aot-env`` makes; ``make aot-step`` and ``make
aot-step-check`` see to that. A row is written as soon as it is there. What compiles need not
compute the right thing: that is for the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.aot import arguments, pool
from benchmarks.aot.step import compiler, report
from benchmarks.aot.step.cases import StepCase, all_cases, quick_cases

_ADVICE = """\
A step that moves activations between devices waits for the network in every layer: see what in
train/engine/step.py or kernels/sharding/device_parts.py mixes rows of different devices.\
"""


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = arguments.parser("benchmarks.aot.step", __doc__, workers=1)
    parser.add_argument("--missing", action="store_true", help="only what has no row yet")
    options = parser.parse_args()
    cases = arguments.chosen(quick_cases() if options.check else all_cases(), options.only)
    if options.missing:
        cases = [case for case in cases if case.key not in report.read()]
    failures = compile_all(cases, options.workers, saves=not options.check)
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    if failures:
        print(_ADVICE, file=sys.stderr)
    return len(failures) > 0


def compile_all(cases: Sequence[StepCase], workers: int, *, saves: bool) -> dict[str, str]:
    """Compile, print and write rows; why each case that failed did."""
    failures = {}
    rows = pool.run(compiler.compile_step, cases, workers, seconds=3600)
    for case, row in zip(cases, rows, strict=True):
        print(case.key, row, flush=True)
        if reason := failed(case, row):
            failures[case.key] = reason
        if saves and "error" not in row:
            report.add(case.key, row, compiler.environment())
    return failures


def failed(case: StepCase, row: report.Row) -> str | None:
    """What is wrong with a row, if anything."""
    if "error" in row:
        return row["error"]
    if row.get("moved"):
        return f"activations move between devices: {', '.join(row['moved'])}"
    if row.get("rounded"):
        return f"gradients are added up in 16 bits: {', '.join(row['rounded'])}"
    # A row of a step that is too large for its machine tells nothing of its program.
    if case.attention is None and row.get("kernels") == 0:
        return "the program holds no kernel of ours"
    return None


if __name__ == "__main__":
    sys.exit(main())
