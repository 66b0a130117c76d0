"""What is compiled: problems, forward and backward, by the kernels and by XLA, for each chip."""

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
    """One pass of one problem in one dtype, by one implementation, for one chip."""

    problem: Problem
    what: Pass
    chip: str
    implementation: str = "mosaic_tpu"
    dtype: str = "bfloat16"

    @property
    def key(self) -> str:
        """Name in the table of results."""
        parts = (self.problem.name, self.dtype, self.what, self.implementation, self.chip)
        return "/".join(parts)

    def arrays(self, sharding: Any) -> list[jax.ShapeDtypeStruct]:
        """Query, key, value and bias; for the backward pass also the gradient of the output.

        Channels are whole, as modules have them before they become heads.
        """
        p = self.problem
        channels = (p.batch, *p.shape, p.heads * p.head_dim)
        maps = [jax.ShapeDtypeStruct(channels, self.dtype, sharding=sharding)] * 3
        shape = (p.heads, *p.neighborhood.bias_shape)
        bias = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        return [*maps, bias, *(maps[:1] if self.what == "backward" else [])]

    def function(self, *arrays: jax.Array) -> Any:
        """Run the pass."""
        p = self.problem

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, rpb: jax.Array) -> jax.Array:
            q, k, v = (x.reshape(*x.shape[:-1], p.heads, p.head_dim) for x in (q, k, v))
            out = p.op(q, k, v, rpb=rpb, **p.arguments, implementation=self.implementation)
            return out.reshape(*out.shape[:-2], -1)

        if self.what == "forward":
            return attend(*arrays)
        return jax.vjp(attend, *arrays[:4])[1](arrays[4])


_STAGES = problems.NAT_BASE
FIRST = dataclasses.replace(_STAGES[0], batch=32)
# Stages of NAT-Base, the first with DiNAT's dilation too; and six heads, which fill one and a half
# blocks of lanes.
PROBLEMS = [
    FIRST,
    dataclasses.replace(_STAGES[2], batch=128),
    dataclasses.replace(FIRST, name="dinat_base-stage1-d8", dilation=8),
    dataclasses.replace(_STAGES[1], name="nat_small-stage2-d1", batch=64, heads=6),
]
# Small enough for XLA's own compile not to take minutes.
_BY_XLA = PROBLEMS[1]


def all_cases() -> list[TPUCase]:
    """Every problem for v5e and v6e; the first for all chips, and one by XLA."""
    cases = []
    for problem in PROBLEMS:
        for what in PASSES:
            cases += [
                TPUCase(problem=problem, what=what, chip=chip)
                for chip in (CHIPS if problem == FIRST else ("v5e", "v6e"))
            ]
            if problem == _BY_XLA:
                xla = TPUCase(problem=problem, what=what, chip="v5e", implementation="xla")
                cases.append(xla)
    return cases


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    return [case for case in all_cases() if case.problem == FIRST and case.chip in ("v5e", "v6e")]
