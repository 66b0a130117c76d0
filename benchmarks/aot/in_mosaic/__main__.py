"""Compile the kernels for Hopper for an H100, on a machine that has none.

    python -m benchmarks.aot.in_mosaic              # into results/aot_mosaic_gpu.{md,json}
    python -m benchmarks.aot.in_mosaic --check      # some, against the committed table
    python -m benchmarks.aot.in_mosaic --only video # print those whose names have all of these

One op is compiled for eight GPUs, too, and what they exchange is read from the program. It needs
the environment that ``scripts/aot-env`` makes; ``make aot`` sees to that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.aot import __main__ as aot
from benchmarks.aot import arguments, pool
from benchmarks.aot import report as aot_report
from benchmarks.aot.in_mosaic import compiler, limits, report
from benchmarks.aot.in_mosaic.cases import kernels_of, problems

TABLE = aot_report.RESULTS / "aot_mosaic_gpu.json"
DOCUMENT = aot_report.RESULTS / "aot_mosaic_gpu.md"


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = arguments.parser("benchmarks.aot.in_mosaic", __doc__)
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    options = parser.parse_args()
    chosen = problems(options.check)
    chosen = [p for p in chosen if all(part in p.name for part in options.only)]
    rows: dict[str, Any] = {}
    reasons: dict[str, str | None] = {}
    answers = pool.run(compiler.compile_problem, chosen, options.workers)
    for problem, answer in zip(chosen, answers, strict=True):
        kernels = kernels_of(problem)
        found = dict.fromkeys(kernels, answer) if "error" in answer else answer
        for kernel in kernels:
            key = f"{problem.name}/{kernel}"
            rows[key] = found[kernel]
            print(key, found[kernel], flush=True)
            if "error" not in found[kernel] and limits.too_few(problem, found[kernel]):
                reasons[key] = "has room for one multiplying warpgroup on a multiprocessor"
    devices = None
    if not options.only:
        (devices,) = pool.run(compiler.compile_for_devices, problems(quick=True)[:1], 1)
        print(compiler.MACHINE, devices, flush=True)
        reasons[compiler.MACHINE] = compiler.wrongly_exchanged(devices)
    if options.save or not (options.only or options.check):
        save(rows, devices)
    reasons |= failed(rows, read() if options.check else {})
    failures = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return len(failures) > 0


def failed(rows: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Why each kernel that failed did: an error, a new spill, or a new figure."""
    reasons = {}
    for key, row in rows.items():
        before = known.get(key)
        if "error" in row:
            reasons[key] = row["error"]
        elif row.get("loop_spills"):
            reasons[key] = f"spills registers in its loop, {row['spill']} bytes in all"
        elif row["spill"] > (before or row).get("spill", 0):
            reasons[key] = f"spills {row['spill']} bytes of registers"
        elif before and row["instructions"] > 1.05 * before["instructions"]:
            reasons[key] = (
                f"has {row['instructions']} instructions, not {before['instructions']}: if they "
                "are to be lived with, python -m benchmarks.aot.in_mosaic writes them down"
            )
    return reasons


def save(rows: Mapping[str, Any], devices: Mapping[str, Any] | None) -> None:
    """Put rows into the table, in the order of all problems; those that are no more go."""
    known, devices = read() | dict(rows), devices or read_devices()
    keys = [f"{p.name}/{kernel}" for p in problems(quick=False) for kernel in kernels_of(p)]
    kept = {key: known[key] for key in keys if key in known}
    where = aot.environment() | {"command": "python -m benchmarks.aot.in_mosaic"}
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in kept.items())
    head = f'"environment": {json.dumps(where)},\n "devices": {json.dumps(devices)}'
    TABLE.write_text(f'{{{head},\n "rows": {{\n{lines}\n}}}}\n')
    DOCUMENT.write_text(report.document(kept, devices, where))


def read_devices() -> dict[str, Any]:
    """What devices exchange, as committed."""
    return json.loads(TABLE.read_text()).get("devices", {}) if TABLE.exists() else {}


def read() -> dict[str, Any]:
    """The committed rows, by problem and kernel."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
