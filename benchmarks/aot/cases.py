"""What is compiled: named problems, their kernels, and functions that run each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

import natjax
from benchmarks.aot.chips import CHIPS
from benchmarks.problems import LARGE
from natjax.kernels.spec import KERNELS, Kernel
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

FUSED: tuple[Kernel, ...] = ("forward", "dquery", "dkeyvalue", "dbias")
UNFUSED: tuple[Kernel, ...] = ("qk", "av", "av_transposed")
_QK = {1: natjax.na1d_qk, 2: natjax.na2d_qk, 3: natjax.na3d_qk}
_AV = {1: natjax.na1d_av, 2: natjax.na2d_av, 3: natjax.na3d_av}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kernel of one problem in one dtype, for one chip."""

    problem: Problem
    dtype: str
    kernel: Kernel
    chip: str

    @property
    def key(self) -> str:
        """Name in the table of results."""
        return f"{self.problem.name}/{self.dtype}/{self.kernel}/{self.chip}"


def _published(dtype: str = "bfloat16") -> list[tuple[Problem, str]]:
    stages = dict.fromkeys(
        dataclasses.replace(p, batch=128) for p in (*problems.NAT_TINY, *problems.DINAT_TINY)
    )
    # The last stage of DiNAT is that of NAT.
    unique = {(p.shape, p.dilation): p for p in reversed(stages)}
    return [(p, dtype) for p in reversed(unique.values())]


_WIDE = [
    Problem(
        name=f"heads-of-{size}",
        shape=(56, 56),
        kernel_size=(7, 7),
        batch=128,
        heads=2,
        head_dim=size,
    )
    for size in (64, 128, 256)
]
_OTHER_DTYPE = [
    (dataclasses.replace(p, batch=128), "float32") for p in (problems.NAT_TINY[0], _WIDE[1])
]
_OTHER_LAYOUTS = [
    Problem(name="1d", shape=(4096,), kernel_size=(255,), batch=16, heads=8, head_dim=64),
    Problem(name="video", shape=(8, 28, 28), kernel_size=(3, 7, 7), batch=8, heads=8, head_dim=64),
    Problem(name="window-31", shape=(64, 64), kernel_size=(31, 31), batch=4, heads=4, head_dim=128),
]

PROBLEMS: list[tuple[Problem, str]] = [
    *_published(),
    *((p, "bfloat16") for p in (*_WIDE, *_OTHER_LAYOUTS, *LARGE)),
    *_OTHER_DTYPE,
]


def all_cases() -> list[Case]:
    """Every case, problem by problem."""
    return [
        Case(problem=problem, dtype=dtype, kernel=kernel, chip=chip)
        for problem, dtype in PROBLEMS
        for kernel in kernels_of(problem)
        for chip in CHIPS
    ]


def kernels_of(problem: Problem) -> Iterator[Kernel]:
    """Kernels that a problem needs."""
    for kernel in KERNELS:
        if kernel in UNFUSED and problem in LARGE:
            continue
        if kernel == "dbias" and not problem.rpb:
            continue
        yield kernel


def quick_cases() -> list[Case]:
    """A minute's worth: all chips for one stage, and H100 for the extremes of width and layout."""
    chosen = []
    for case in all_cases():
        first = case.problem.name == "nat_tiny-stage1-d1" and case.dtype == "bfloat16"
        wide = (
            case.problem.name in ("heads-of-128", "video", "image-256") and case.dtype != "float32"
        )
        if first or (wide and case.chip == "h100" and case.kernel in FUSED):
            chosen.append(case)
    return chosen


def function_of(
    case: Case, implementation: str = "pallas_triton"
) -> Callable[[dict[str, Any]], Any]:
    """A function of the problem's arrays that runs the case's kernel."""
    problem, axes = case.problem, case.problem.ndim
    if case.kernel in FUSED:
        op = functools.partial(problem.op, **problem.arguments, implementation=implementation)
        if case.kernel == "forward":
            return lambda arrays: op(**arrays)
        return lambda arrays: jax.vjp(lambda a: op(**a), arrays)[1](arrays["query"])
    arguments = {k: v for k, v in problem.arguments.items() if k != "stride"}
    qk = functools.partial(_QK[axes], **arguments, implementation=implementation)
    av = functools.partial(_AV[axes], **arguments, implementation=implementation)

    def unfused(arrays: dict[str, Any]) -> Any:
        weights = qk(arrays["query"], arrays["key"], rpb=arrays.get("rpb"))
        return av(jax.nn.softmax(weights), arrays["value"])

    return lambda arrays: jax.vjp(unfused, arrays)[1](arrays["value"])
