"""What is compiled: problems, forward and backward, for each chip."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

type Pass = Literal["forward", "backward"]

PASSES: tuple[Pass, ...] = ("forward", "backward")
# As libtpu names the smallest slice of each.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TPUCase:
    """One pass of one problem in bfloat16, for one chip."""

    problem: Problem
    what: Pass
    chip: str

    @property
    def key(self) -> str:
        """Name in the table of results."""
        return f"{self.problem.name}/{self.what}/{self.chip}"

    def arrays(self, sharding: Any) -> list[jax.ShapeDtypeStruct]:
        """Query, key, value and bias; for the backward pass also the gradient of the output.

        Channels are whole, as modules have them before they become heads.
        """
        p = self.problem
        channels = (p.batch, *p.shape, p.heads * p.head_dim)
        maps = [jax.ShapeDtypeStruct(channels, jnp.bfloat16, sharding=sharding)] * 3
        shape = (p.heads, *p.neighborhood.bias_shape)
        bias = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return [*maps, bias, *(maps[:1] if self.what == "backward" else [])]

    def function(self, *arrays: jax.Array) -> Any:
        """Run the pass."""
        p = self.problem

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, rpb: jax.Array) -> jax.Array:
            q, k, v = (x.reshape(*x.shape[:-1], p.heads, p.head_dim) for x in (q, k, v))
            out = p.op(q, k, v, rpb=rpb, **p.arguments, implementation="mosaic_tpu")
            return out.reshape(*out.shape[:-2], -1)

        if self.what == "forward":
            return attend(*arrays)
        return jax.vjp(attend, *arrays[:4])[1](arrays[4])


_STAGES = problems.NAT_BASE
FIRST = dataclasses.replace(_STAGES[0], batch=32)
# Stages of NAT-Base, and DiNAT's dilation in the first.
PROBLEMS = [
    FIRST,
    dataclasses.replace(_STAGES[2], batch=128),
    dataclasses.replace(FIRST, name="dinat_base-stage1-d8", dilation=8),
]


def all_cases() -> list[TPUCase]:
    """Every problem for v5e and v6e, the first for all chips."""
    return [
        TPUCase(problem=problem, what=what, chip=chip)
        for problem in PROBLEMS
        for what in PASSES
        for chip in (CHIPS if problem == FIRST else ("v5e", "v6e"))
    ]


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    return [case for case in all_cases() if case.problem == FIRST and case.chip in ("v5e", "v6e")]
