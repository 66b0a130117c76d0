"""The kernels on the GPU of this machine: first that they are right, then how fast they are.

    make gpu                                         # or, without make:
    python -m benchmarks.gpu                         # tests, then measurements, under 8 minutes
    python -m benchmarks.gpu --no-tests --seconds 200
    python -m benchmarks.gpu --dry-run               # all of the code, on a CPU, tiny problems

It needs jax, flax, pytest, hypothesis and jaxtyping, and the repository; with torch it also times
FlexAttention, with fa4-jax FlashAttention-4 and with tokamax its attention. What a call gets,
forward, and forward and backward, is compared with: our own "pallas_triton" and "xla"; full
attention by cuDNN; tokamax with mask and bias of all pairs; fa4-jax with a mask function, where
there is no bias; blocked attention, which is ours with the stride of the window (what Swin does);
and PyTorch's compiled FlexAttention, with its kernels in Triton's language and, with flash-attn-4
beside it, with those of FlashAttention-4. Columns "copy" and "matmul" are useful bytes and flops a
second as fractions of what this device reaches when it copies and multiplies matrices, measured in
the same run; "MB" is what a call takes besides its arguments.

Results go to benchmarks/results/ as they come, and the page with the table is written and printed
last.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import jax.numpy as jnp

import natjax
from benchmarks.gpu import functions, hopper, plan, report, suite, timing, torch_worker
from benchmarks.gpu.plan import MODES, TORCH_VARIANTS, VARIANTS
from natjax.kernels.tuning.problems import Problem

type Key = tuple[Problem, plan.Variant, plan.Mode]

_DTYPE = "bfloat16"
_TEST_SHARE = 0.6  # of the time
_COMPILE_SHARE = 0.4  # of what is left after the tests
_TORCH_PROCESSES = 4  # for each variant of PyTorch's
_MEASURED_SECONDS = 0.4


def main() -> int:
    """Parse the command line, test, measure."""
    options = _options()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options.dry_run:
        os.environ["NATJAX_INTERPRET"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    elif jax.default_backend() != "gpu":
        print("there is no GPU here; --dry-run runs all of the code without one", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    kind = jax.devices()[0].device_kind
    passed = not options.tests or not hopper.is_for(kind) or hopper.check_all()
    passed &= not options.tests or _test(options.dry_run, options.seconds * _TEST_SHARE)
    measurements = _Measurements(
        problems=plan.tiny() if options.dry_run else plan.full(),
        path=options.json or report.path_of(jax.devices()[0].device_kind),
        environment=_environment(options.dry_run),
        variants=options.variants,
        end=end,
    )
    measurements.run(matrix=256 if options.dry_run else 8192)
    if options.dry_run:
        print("DRY RUN: the times below are of an interpreter on a CPU and mean nothing")
    outcome = "not run" if not options.tests else "passed" if passed else "FAILED"
    page = report.document(measurements.environment, measurements.rows, outcome)
    measurements.path.with_suffix(".md").write_text(page)
    print(page, end="")
    if not passed:
        print("THE TESTS FAILED, see above: what is fast here need not be right", file=sys.stderr)
    return int(not passed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=450, help="for all of it")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="only measure")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="what is measured (all)"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write the results here instead")
    parser.add_argument("--dry-run", action="store_true", help="tiny problems, on a CPU")
    options = parser.parse_args()
    if options.dry_run and options.json is None:
        # So that no number of an interpreter is ever taken for a GPU's.
        parser.error("--dry-run needs --json, to keep its numbers out of the results")
    return options


def _test(dry_run: bool, seconds: float) -> bool:
    if dry_run:
        return suite.run(["tests/kernels/test_merge.py"], processes=2, seconds=seconds)
    # Compiling takes most of the time, on the CPU; memory of the GPU is taken as needed.
    processes = max(1, min(16, (os.cpu_count() or 1) - 2))
    return suite.run(["tests/kernels"], processes, seconds, suite.ON_DEVICE)


class _Measurements:
    """Compile all, then measure all; what is out of time is left out, and says so."""

    def __init__(
        self,
        problems: Sequence[Problem],
        path: pathlib.Path,
        environment: dict[str, Any],
        variants: Sequence[plan.Variant],
        end: float,
    ) -> None:
        self._problems = problems
        self.path = path
        self.environment = environment
        self._variants = variants
        self._end = end
        self.rows: list[report.Row] = []

    def run(self, matrix: int) -> None:
        """Do it; ``matrix`` is the size of matrices for the device's own ceilings."""
        wanted = [v for v in TORCH_VARIANTS if v in self._variants]
        started = wanted if torch_worker.is_available() else []
        workers = torch_worker.start(started, self._problems, _DTYPE, _TORCH_PROCESSES)
        try:
            programs = self._compile()
            ready = [worker.wait(self._left() * _COMPILE_SHARE) for worker in workers]
            # Nothing else keeps machine or device busy from here on.
            for worker, is_ready in zip(workers, ready, strict=True):
                if not is_ready:
                    worker.end()
            self.environment["ceilings"] = timing.ceilings(matrix)
            self._measure(programs)
            self._measure_torch(workers, ready)
            for variant in set(wanted) - set(started):
                self._add_torch(
                    torch_worker.missing(variant, self._problems, "torch cannot be imported")
                )
        finally:
            for worker in workers:
                worker.end()

    def _compile(self) -> dict[Key, Future[timing.Program]]:
        begin = time.monotonic()
        variants = [v for v in self._variants if v not in TORCH_VARIANTS]
        keys = [(p, v, m) for p in self._problems for v in variants for m in MODES]
        busy = _TORCH_PROCESSES * (len(self._variants) - len(variants))
        pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - busy))
        futures = {key: pool.submit(timing.compile_program, *key, _DTYPE) for key in keys}
        wait(futures.values(), timeout=self._left() * _COMPILE_SHARE)
        pool.shutdown(wait=True, cancel_futures=True)
        print(f"compiled in {time.monotonic() - begin:.0f} s", flush=True)
        return futures

    def _measure(self, programs: dict[Key, Future[timing.Program]]) -> None:
        for (problem, variant, mode), program in programs.items():
            row = {"problem": problem.name, "mode": mode, "variant": variant}
            self._add(problem, row | self._outcome(problem, variant, program))

    def _outcome(
        self, problem: Problem, variant: plan.Variant, program: Future[timing.Program]
    ) -> dict[str, Any]:
        if program.cancelled():
            return {"error": "not compiled in time"}
        if self._left() < 0:
            return {"error": "out of time"}
        try:
            compiled = program.result()
            arrays = functions.arrays_of(problem, variant, _DTYPE)
            measured = timing.measure(compiled, arrays, _MEASURED_SECONDS)
        except Exception as error:  # what a peer cannot do is a result
            reason = str(error).splitlines()[0] if str(error) else ""
            return {"error": f"{type(error).__name__}: {reason}"[:200]}
        return measured | {"memory_bytes": compiled.memory}

    def _measure_torch(
        self, workers: Sequence[torch_worker.TorchWorker], ready: Sequence[bool]
    ) -> None:
        for worker, is_ready in zip(workers, ready, strict=True):
            seconds = self._left()
            self._add_torch(
                worker.measure(seconds) if is_ready else worker.missing("not compiled in time")
            )

    def _add_torch(self, rows: Sequence[report.Row]) -> None:
        by_name = {problem.name: problem for problem in self._problems}
        for row in rows:
            self._add(by_name[row["problem"]], row)

    def _add(self, problem: Problem, row: report.Row) -> None:
        if "ms" in row:
            row |= report.fractions(
                problem,
                row["mode"],
                row["ms"],
                jnp.dtype(_DTYPE).itemsize,
                self.environment["ceilings"],
            )
            print(
                f"{row['problem']} {row['mode']} {row['variant']}: {row['ms']:.3f} ms", flush=True
            )
        self.rows.append(row)
        report.save(self.path, self.environment, self.rows)

    def _left(self) -> float:
        return self._end - time.monotonic()


def _environment(dry_run: bool) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "natjax": natjax.__version__,
        "torch": torch_worker.version(),
        "dtype": _DTYPE,
        "dry_run": dry_run,
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(main())
