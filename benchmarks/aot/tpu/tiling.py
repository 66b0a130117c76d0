"""Which tiles of "xla" are best on a TPU, by XLA's estimate of its own program for a v5e.

    python -m benchmarks.aot.tpu.tiling                     # every choice, forward and backward
    python -m benchmarks.aot.tpu.tiling --overhead 64 1024 --only stage1

It needs the environment that ``scripts/aot-env`` makes. Cycles are for an image and 128 channels.
They compare programs with each other, and say nothing of kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
from typing import Any

from benchmarks.aot import pool
from benchmarks.aot.tpu import compiler, estimate
from benchmarks.aot.tpu.cases import PASSES, Pass, TPUCase
from natjax.kernels.backends.xla import fused
from natjax.kernels.backends.xla.fused import Tiling
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

_STAGES = problems.NAT_BASE
PROBLEMS = [
    dataclasses.replace(_STAGES[0], batch=8),
    dataclasses.replace(_STAGES[0], name="dinat_base-stage1-d8", dilation=8, batch=8),
    *(dataclasses.replace(stage, batch=8) for stage in _STAGES[1:]),
]


@dataclasses.dataclass(frozen=True)
class _Job:
    problem: Problem
    what: Pass
    tiling: Tiling


def main() -> None:
    """Compile and print a row for each choice."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.tpu.tiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = fused.TILINGS["tpu"]
    parser.add_argument("--overhead", nargs="+", type=int, default=[16, 64, 256, 1024])
    parser.add_argument("--logits", nargs="+", type=int, default=[default.logits_at_once])
    parser.add_argument("--tiles", nargs="+", type=int, default=[default.tiles_at_once])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--only", default="", help="a part of the problems' names")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    choices = itertools.product(options.overhead, options.logits, options.tiles)
    jobs = [
        _Job(problem, what, tiling)
        for tiling in itertools.starmap(Tiling, choices)
        for problem in PROBLEMS
        if options.only in problem.name
        for what in options.passes
    ]
    print("| slab overhead | logits at once | tiles at once | problem | pass | cycles | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for job, row in zip(jobs, pool.run(_compile, jobs, options.workers), strict=True):
        cells = [*dataclasses.astuple(job.tiling), job.problem.name, job.what]
        cells += [row["error"]] if "error" in row else [f"{row['cycles']:,}", row["temporaries"]]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def _compile(job: _Job) -> dict[str, Any]:
    fused.TILINGS["tpu"] = job.tiling
    case = TPUCase(problem=job.problem, what=job.what, chip="v5e", implementation="xla")
    program = compiler.compile_program(case)
    images = job.problem.batch * job.problem.heads * job.problem.head_dim / 128
    return {
        "cycles": round(estimate.cycles(program.as_text()) / images),
        "temporaries": round(program.memory_analysis().temp_size_in_bytes / 1e6),
    }


if __name__ == "__main__":
    main()
