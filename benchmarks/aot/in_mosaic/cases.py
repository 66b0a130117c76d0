"""What is compiled of the kernels for Hopper."""

from __future__ import annotations

from benchmarks.aot import cases
from natjax.kernels.spec import Kernel
from natjax.kernels.tuning.problems import Problem

CHIP = "h100"
_PROBLEMS = (
    "nat_tiny-stage1-d1",
    "nat_tiny-stage2-d1",
    "nat_tiny-stage3-d1",
    "dinat_tiny-stage1-d8",
    "heads-of-64",
    "heads-of-128",
    "window-31",
    "image-256",
    "video-30x48x80",
)
_QUICK = ("nat_tiny-stage1-d1", "image-256")


def problems(quick: bool) -> list[Problem]:
    """What is compiled, in bfloat16."""
    names = _QUICK if quick else _PROBLEMS
    return [p for p, dtype in cases.PROBLEMS if p.name in names and dtype == "bfloat16"]


def kernels_of(problem: Problem) -> list[Kernel]:
    """The kernels of a problem: those of the fused op, and of the unfused ones where they fit."""
    return list(cases.kernels_of(problem))
