"""What a step of the kernels for large windows costs, fitted to bundles of compiled kernels.

    python -m benchmarks.aot.tpu.walks

It compiles kernels with tiles and chunks of many sizes for a v5e and prints the bundles of a step,
and what they say of the constants by which `large/walk.py` and `large/choice.py` choose. It needs
the environment that ``scripts/aot-env`` makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.aot import pool
from benchmarks.aot.tpu import compiler, figures, report
from benchmarks.aot.tpu.cases import FIRST, LARGE, Pass, TPUCase
from natjax.kernels.backends.mosaic_tpu.large import walk as walks
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES, Layout

CHIP = "v5e"
# Tiles and chunks of the map with windows of 80x80.
_SIDES = (
    ((8, 16), (16, 96)),
    ((8, 16), (32, 96)),
    ((16, 16), (8, 96)),
    ((16, 16), (16, 96)),
    ((16, 16), (32, 96)),
    ((8, 32), (24, 112)),
    ((16, 32), (8, 112)),
    ((16, 32), (16, 112)),
)
_PASSES: tuple[Pass, ...] = ("forward", "dquery", "dkeyvalue")


@dataclasses.dataclass(frozen=True)
class _Job:
    what: Pass
    tile: tuple[int, ...]
    chunk: tuple[int, ...]


def main() -> None:
    """Compile, print a row for each, and the constants."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.tpu.walks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    jobs = [_Job(what, *sides) for what in _PASSES for sides in _SIDES]
    rows = list(zip(jobs, pool.run(_compile, jobs, options.workers), strict=True))
    print("| pass | tile | chunk | bundles of a step |")
    print("| --- | --- | --- | --- |")
    for job, row in rows:
        print(f"| {job.what} | {job.tile} | {job.chunk} | {row.get('bundles', row)} |")
    for what in _PASSES:
        _print_fit(what, ((job, row["bundles"]) for job, row in rows if job.what == what))
    _print_cost()


def _compile(job: _Job) -> dict[str, Any]:
    walks._best_axes = lambda neighborhood, rows, _: walks.axes_of(
        neighborhood, rows, job.tile, job.chunk
    )
    row = compiler.compile_case(TPUCase(problem=LARGE, what=job.what, chip=CHIP))
    return {"bundles": round(row["bundles"] / row["steps"])}


def _print_fit(what: str, measured: Iterable[tuple[_Job, int]]) -> None:
    """The bundles of a step as a multiple of its vectors of logits, its rows and its columns."""
    terms, bundles = [], []
    for job, count in measured:
        rows, columns = np.prod(job.tile) / SUBLANES, np.prod(job.chunk) / LANES
        terms.append((rows * columns, rows, columns, 1))
        bundles.append(count)
    # Of bundles that are relative to each other, so that no step counts more for being longer.
    weights = 1 / np.array(bundles)
    fit, *_ = np.linalg.lstsq(np.array(terms) * weights[:, None], np.ones(len(terms)))
    error = np.abs(np.array(terms) @ fit * weights - 1).max()
    of_rows, of_columns, step = fit[1:] / fit[0]
    print(
        f"{what}: {fit[0]:.2f} bundles for a vector of logits; in vectors, {of_rows:.2f} for 8 "
        f"rows, {of_columns:.2f} for 128 columns, {step:.0f} for a step; at most {error:.0%} off"
    )


def _print_cost() -> None:
    """What a unit of work costs here, over what it costs kernels with whole maps in memory."""
    table = report.read()

    def bundles(problem: str, passes: Iterable[str]) -> int:
        return sum(table[f"{problem}/{what}/{CHIP}"]["bundles"] for what in passes)

    small = Layout.of(FIRST.neighborhood, FIRST.heads, FIRST.head_dim)
    of_small = bundles(FIRST.name, ("forward", "backward")) / small.work
    case = TPUCase(problem=LARGE, what="forward", chip=CHIP)
    work = figures.walks_of(case.spec, LARGE.heads)
    of_large = bundles(LARGE.name, _PASSES) / ((work.queries.work + work.keys.work) / 2)
    print(f"_COST: {of_large / of_small:.2f}, by the committed table")


if __name__ == "__main__":
    main()
