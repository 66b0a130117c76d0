"""What is measured: problems, variants, and the order in which time is spent on them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from benchmarks.problems import LARGE
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

type Mode = Literal["forward", "forward+backward"]
type Variant = Literal[
    "natjax", "pallas_triton", "xla", "cudnn", "tokamax", "fa4", "blocked", "flex", "flex_fa4"
]

MODES: tuple[Mode, ...] = ("forward", "forward+backward")
# What runs in PyTorch.
TORCH_VARIANTS: tuple[Variant, ...] = ("flex", "flex_fa4")
# The first is what the others are compared with.
VARIANTS: tuple[Variant, ...] = (
    "natjax",
    "pallas_triton",
    "xla",
    "cudnn",
    "tokamax",
    "fa4",
    "blocked",
    *TORCH_VARIANTS,
)


def full() -> list[Problem]:
    """All problems, those that matter most first, should time run out."""
    first = [*problems.NAT_TINY, *problems.DINAT_TINY[:3]]
    return [
        *_batched(first, 128),
        *LARGE,
        *_batched(problems.NAT_BASE, 128),
        *_batched(problems.NAT_TINY, 64),
        *_batched(problems.NAT_BASE, 64),
    ]


def tiny() -> list[Problem]:
    """One problem with a bias and dilation and one without, so small that an interpreter does."""
    return [
        _shrunk(problems.DINAT_TINY[2], (6, 6), (3, 3)),
        _shrunk(LARGE[1], (3, 4, 5), (2, 2, 3)),
    ]


def _batched(chosen: list[Problem] | tuple[Problem, ...], batch: int) -> list[Problem]:
    return [dataclasses.replace(p, name=f"{p.name}-b{batch}", batch=batch) for p in chosen]


def _shrunk(problem: Problem, shape: tuple[int, ...], kernel_size: tuple[int, ...]) -> Problem:
    name = f"{problem.name}-shrunk"
    return dataclasses.replace(
        problem, name=name, shape=shape, kernel_size=kernel_size, batch=1, heads=2, head_dim=16
    )


def moved_bytes(problem: Problem, mode: Mode, itemsize: int) -> int:
    """What any implementation must read and write once.

    Forward: q, k, v and the output, and the log-sum-exp where a backward pass follows. Backward:
    these five and the output's gradient are read, and three gradients written.
    """
    tokens = problem.batch * problem.heads * math.prod(problem.shape)
    array, lse = tokens * problem.head_dim * itemsize, tokens * 4
    return 4 * array if mode == "forward" else 12 * array + 2 * lse


def useful_flops(problem: Problem, mode: Mode) -> int:
    """Two matrix products forward and five backward, over pairs of query and neighbor alone."""
    hood = problem.neighborhood
    pairs = problem.batch * problem.heads * hood.num_tokens * hood.num_neighbors
    return (2 if mode == "forward" else 7) * 2 * pairs * problem.head_dim
