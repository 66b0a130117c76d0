"""The kernels on the TPU of this machine: first that they are right, then how fast they are.

    make tpu                                         # or, without make:
    python -m benchmarks.tpu                         # tests, then measurements, under 30 minutes
    python -m benchmarks.tpu --no-tests
    python -m benchmarks.tpu --dry-run               # all of the code, on a CPU, a tiny problem

It needs jax with libtpu, flax, pytest, hypothesis and jaxtyping, and the repository. Forward, and
forward and backward, are compared with our own "xla", and with JAX's splash attention, which is
given the neighborhood as a mask, without a bias, at three sizes of blocks. One device is used.

Results go to benchmarks/results/ as they come, and the page with the table is written and printed
last.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import re
import sys
import time
from typing import Any

import jax

import natjax
from benchmarks.gpu import functions, suite, timing
from benchmarks.gpu.report import RESULTS, Row, reasons, save
from benchmarks.tpu import variants
from benchmarks.tpu.variants import MODES, VARIANTS, Mode
from natjax.kernels.tuning.problems import Problem

_DTYPE = "bfloat16"
_TEST_SHARE = 0.6  # of the time
_MEASURED_SECONDS = 0.4
# Calls in one program, so that a device is never idle between two of them.
_CHAIN = 8
_SELECTED = "mosaic_tpu and not toy"


def main() -> int:
    """Parse the command line, test, measure."""
    options = _options()
    if options.dry_run:
        os.environ["NATJAX_INTERPRET"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    elif jax.default_backend() != "tpu":
        print("there is no TPU here; --dry-run runs all of the code without one", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    passed = not options.tests or _test(options.dry_run, options.seconds * _TEST_SHARE)
    path = options.json or _path_of(jax.devices()[0].device_kind)
    environment = _environment(options.dry_run)
    environment["ceilings"] = timing.ceilings(128 if options.dry_run else 8192)
    rows: list[Row] = []
    for problem in variants.tiny() if options.dry_run else variants.full():
        for mode in MODES:
            for variant in VARIANTS:
                row = {"problem": problem.name, "mode": mode, "variant": variant}
                row |= _measured(problem, variant, mode, end, options.dry_run)
                print(row, flush=True)
                rows.append(row)
                save(path, environment, rows)
    if options.dry_run:
        print("DRY RUN: the times below are of an interpreter on a CPU and mean nothing")
    outcome = "not run" if not options.tests else "passed" if passed else "FAILED"
    page = document(environment, rows, outcome)
    path.with_suffix(".md").write_text(page)
    print(page, end="")
    if not passed:
        print("THE TESTS FAILED, see above: what is fast here need not be right", file=sys.stderr)
    return int(not passed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=1800, help="for all of it")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="only measure")
    parser.add_argument("--json", type=pathlib.Path, help="write the results here instead")
    parser.add_argument("--dry-run", action="store_true", help="a tiny problem, on a CPU")
    options = parser.parse_args()
    if options.dry_run and options.json is None:
        # So that no number of an interpreter is ever taken for a TPU's.
        parser.error("--dry-run needs --json, to keep its numbers out of the results")
    return options


def _test(dry_run: bool, seconds: float) -> bool:
    # One process: no two can have the same TPU.
    if dry_run:
        return suite.run(["tests/kernels/test_registry.py"], 1, seconds)
    return suite.run(["tests/kernels"], 1, seconds, _SELECTED)


def _measured(
    problem: Problem, variant: str, mode: Mode, end: float, dry_run: bool
) -> dict[str, Any]:
    """Times of a variant, or why there are none."""
    if time.monotonic() > end:
        return {"error": "out of time"}
    try:
        one = variants.step(problem, variant, mode, interpret=dry_run)
        calls = 1 if dry_run or variant == "xla" else _CHAIN
        structs = variants.structs_of(problem, variant, _DTYPE)
        compiled = jax.jit(functions.chain(one, calls)).lower(structs).compile()
        usage = compiled.memory_analysis()
        memory = usage.temp_size_in_bytes + usage.output_size_in_bytes
        arrays = variants.arrays_of(problem, variant, _DTYPE)
        program = timing.Program(compiled, calls, memory)
        return timing.measure(program, arrays, _MEASURED_SECONDS) | {"memory_bytes": memory}
    except Exception as error:  # what a peer cannot do is a result
        reason = str(error).splitlines()[0] if str(error) else ""
        return {"error": f"{type(error).__name__}: {reason}"[:200]}


def document(environment: dict[str, Any], rows: list[Row], tests: str) -> str:
    """The results as a page: where, when and how they were made, and the table."""
    ceilings = environment["ceilings"]
    copied = f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    multiplied = f"{ceilings['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s"
    header = ["problem", "mode", "ms", *(f"{variant} x" for variant in VARIANTS[1:])]
    lines = [header, ["---"] * len(header)]
    by_name = {(row["problem"], row["mode"], row["variant"]): row for row in rows}
    for problem, mode in dict.fromkeys((row["problem"], row["mode"]) for row in rows):
        own, *others = (by_name.get((problem, mode, variant), {}) for variant in VARIANTS)
        times = [f"{x['ms'] / own['ms']:.2f}" if "ms" in x and "ms" in own else "-" for x in others]
        lines.append([problem, mode, f"{own['ms']:.3f}" if "ms" in own else "-", *times])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""# The kernels on {environment["device"]}

Made by `{environment["command"]}` on {environment["date"]}, with jax {environment["jax"]} and
natjax {environment["natjax"]}; arrays in {environment["dtype"]}. In the same run the device reached
{copied} copying and {multiplied} multiplying matrices. Tests of the kernels on this device, in the
same run: {tests}.

Times are of natjax's kernels; the last columns tell how many times as long the others take: "xla",
our plain implementation, and splash attention, which takes no bias, at each size of its blocks.

{reasons(rows)}

{table}
"""


def _path_of(device_kind: str) -> pathlib.Path:
    return RESULTS / f"tpu-{re.sub(r'[^a-z0-9]+', '-', device_kind.lower()).strip('-')}.json"


def _environment(dry_run: bool) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "natjax": natjax.__version__,
        "dtype": _DTYPE,
        "dry_run": dry_run,
        "command": " ".join(["python -m benchmarks.tpu", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(main())
