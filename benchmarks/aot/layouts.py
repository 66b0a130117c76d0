"""Whether XLA copies or permutes the arrays that kernels should read in place."""

from __future__ import annotations

import math
import re
from typing import Any

from benchmarks.aot import compiler
from benchmarks.aot.cases import Case, all_cases

_INSTRUCTION = re.compile(
    r"%\S+ = \w+\[([\d,]*)\]\S* (?:transpose|copy|gather|pad|slice|concatenate)\("
)


def cases() -> list[Case]:
    """Programs to look at, forward and backward: undilated, and with a dilation that divides."""
    names = ("nat_tiny-stage1-d1", "dinat_tiny-stage1-d8")
    return [
        case
        for case in all_cases()
        if case.problem.name in names
        and case.dtype == "bfloat16"
        and case.kernel == "dkeyvalue"
        and case.chip == "h100"
    ]


def check(case: Case) -> dict[str, Any]:
    """The instructions that move an array as large as the queries, under "error" if any."""
    problem = case.problem
    text = compiler.hlo_of(case)
    if "natjax_" not in text:
        return {"error": "the program holds no kernel"}
    size = problem.batch * math.prod(problem.shape) * problem.heads * problem.head_dim
    if found := moves(text, size):
        return {"error": f"queries, keys or values are moved: {', '.join(found)}"}
    return {}


def moves(text: str, size: int) -> list[str]:
    """Instructions of a program that do nothing but move an array of so many entries or more."""
    return [
        match.group(0)
        for match in _INSTRUCTION.finditer(text)
        if math.prod(int(n) for n in match.group(1).split(",") if n) >= size
    ]
