"""What is compiled: problems, forward and backward, for each chip."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

import natjax
from natjax.kernels.spec import Op
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

type Pass = Literal["forward", "backward"]

UNFUSED: tuple[Op, ...] = ("qk", "av")
PASSES: tuple[Pass, ...] = ("forward", "backward")
# As libtpu names the smallest slice of each.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TPUCase:
    """One pass of one problem in bfloat16, for one chip.

    Attributes:
      problem: the problem.
      what: the pass.
      chip: the chip.
      op: which op.
      implementation: of the op.
    """

    problem: Problem
    what: Pass
    chip: str
    op: Op = "attention"
    implementation: str = "mosaic_tpu"

    @property
    def passed(self) -> str:
        """The pass, with the op if it is an unfused one."""
        return self.what if self.op == "attention" else f"{self.op} {self.what}"

    @property
    def key(self) -> str:
        """Name in the table of results."""
        return f"{self.problem.name}/{self.passed}/{self.chip}"

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        if self.op == "attention":
            return f"natjax_tpu_{self.what}"
        return f"natjax_tpu_{self.op}{'_gradients' if self.what == 'backward' else ''}"

    def arrays(self, sharding: Any) -> list[jax.ShapeDtypeStruct]:
        """Arguments of the op; for the backward pass also the gradient of the output.

        Channels of maps are whole, as modules have them before they become heads.
        """
        p = self.problem

        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        channels = array(jnp.bfloat16, p.batch, *p.shape, p.heads * p.head_dim)
        slots = p.neighborhood.num_neighbors
        weights = array(jnp.bfloat16, p.batch, *p.shape, p.heads, slots)
        bias = array(jnp.float32, p.heads, *p.neighborhood.bias_shape)
        given, out = {
            "attention": ([channels, channels, channels, bias], channels),
            "qk": ([channels, channels, bias], weights),
            "av": ([weights, channels], channels),
        }[self.op]
        return [*given, *([out] if self.what == "backward" else [])]

    def function(self, *arrays: jax.Array) -> Any:
        """Run the pass."""
        if self.what == "forward":
            return self._run(*arrays)
        return jax.vjp(self._run, *arrays[:-1])[1](arrays[-1])

    def _run(self, *arrays: jax.Array) -> jax.Array:
        p, suffix = self.problem, "" if self.op == "attention" else f"_{self.op}"
        op = functools.partial(
            getattr(natjax, f"na{p.ndim}d{suffix}"),
            **p.arguments,
            implementation=self.implementation,
        )

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], p.heads, p.head_dim)

        if self.op == "av":
            weights, value = arrays
            out = op(weights, heads(value))
        else:
            *maps, rpb = arrays
            out = op(*map(heads, maps), rpb=rpb)
        return out if self.op == "qk" else out.reshape(*out.shape[:-2], -1)


_STAGES = problems.NAT_BASE
FIRST = dataclasses.replace(_STAGES[0], batch=32)
# Stages of NAT-Base, and DiNAT's dilation in the first.
PROBLEMS = [
    FIRST,
    dataclasses.replace(_STAGES[2], batch=128),
    dataclasses.replace(FIRST, name="dinat_base-stage1-d8", dilation=8),
]


def all_cases() -> list[TPUCase]:
    """Every problem for v5e and v6e, the first for all chips; unfused, the first two."""
    fused = [
        TPUCase(problem=problem, what=what, chip=chip)
        for problem in PROBLEMS
        for what in PASSES
        for chip in (CHIPS if problem == FIRST else ("v5e", "v6e"))
    ]
    return fused + [
        TPUCase(problem=problem, what=what, chip=chip, op=op)
        for problem in PROBLEMS[:2]
        for op in UNFUSED
        for what in PASSES
        for chip in ("v5e", "v6e")
    ]


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    quick = [case for case in all_cases() if case.problem == FIRST and case.chip in ("v5e", "v6e")]
    return [case for case in quick if case.op == "attention" or case.chip == "v5e"]
