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
    dtype: str
    what: Pass
    chip: str
    implementation: str = "mosaic_tpu"

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


def _published() -> list[Problem]:
    """NAT-Base's stages, and DiNAT's dilations at the same widths, four heads or more."""
    batches = (32, 64, 128, 256)
    stages = [
        dataclasses.replace(p, batch=batch)
        for p, batch in zip(problems.NAT_BASE, batches, strict=True)
    ]
    dilated = [
        dataclasses.replace(stage, name=f"dinat_base-stage{i + 1}-d{d}", dilation=d)
        for i, (stage, d) in enumerate(zip(stages, (8, 4, 2), strict=False))
    ]
    return [*stages, *dilated]


_STAGES = _published()
_HEADS = [
    dataclasses.replace(_STAGES[0], name="nat_small-stage1-d1", heads=3),
    dataclasses.replace(_STAGES[1], name="nat_small-stage2-d1", heads=6),
]
PROBLEMS = [*((p, "bfloat16") for p in (*_STAGES, *_HEADS)), (_STAGES[0], "float32")]


def all_cases() -> list[TPUCase]:
    """Every problem for v5e and v6e; the first for all chips, and by XLA."""
    cases = []
    for problem, dtype in PROBLEMS:
        first = problem == _STAGES[0] and dtype == "bfloat16"
        for what in PASSES:
            cases += [
                TPUCase(problem=problem, dtype=dtype, what=what, chip=chip)
                for chip in (CHIPS if first else ("v5e", "v6e"))
            ]
            if problem in (_STAGES[0], _STAGES[4]) and dtype == "bfloat16":
                cases.append(dataclasses.replace(cases[-1], chip="v5e", implementation="xla"))
    return cases


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    chosen = (_STAGES[0].name, _STAGES[6].name)
    return [
        case
        for case in all_cases()
        if case.problem.name in chosen
        and case.dtype == "bfloat16"
        and case.implementation == "mosaic_tpu"
        and case.chip in ("v5e", "v6e")
        and (case.what == "backward" or case.problem == _STAGES[0])
    ]
