"""What is compiled: problems, forward and backward, for each chip."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

# Small windows have one kernel for all gradients, large ones two.
type Pass = Literal["forward", "backward", "dquery", "dkeyvalue"]

PASSES: tuple[Pass, ...] = ("forward", "backward")
PASSES_OF_LARGE: tuple[Pass, ...] = ("forward", "dquery", "dkeyvalue")
# Chips that every problem is compiled for, and that CI compares.
_COMPARED = ("v5e", "v6e")
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

    @property
    def spec(self) -> CallSpec:
        """What the kernels are specialised for."""
        p = self.problem
        return CallSpec(p.neighborhood, p.head_dim, p.head_dim, "bfloat16", p.rpb)

    @property
    def is_large(self) -> bool:
        """Whether it runs the kernels for large windows."""
        return prefers_large(self.spec, self.problem.heads)

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        return f"natjax_tpu_{'large_' if self.is_large else ''}{self.what}"

    @property
    def maps(self) -> float:
        """Images times blocks of 128 channels."""
        return self.problem.batch * self.problem.heads * self.problem.head_dim / 128

    def arrays(self, sharding: Any) -> list[jax.ShapeDtypeStruct]:
        """Query, key, value, the bias if there is one and, for gradients, that of the output.

        Channels are whole, as modules have them before they become heads.
        """
        p = self.problem
        channels = (p.batch, *p.shape, p.heads * p.head_dim)
        maps = [jax.ShapeDtypeStruct(channels, jnp.bfloat16, sharding=sharding)] * 3
        shape = (p.heads, *p.neighborhood.bias_shape)
        bias = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)] * p.rpb
        return [*maps, *bias, *(maps[:1] if self.what != "forward" else [])]

    def function(self, implementation: str, *arrays: jax.Array) -> Any:
        """Run the pass by an implementation."""
        p = self.problem

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, *rpb: jax.Array) -> jax.Array:
            q, k, v = (x.reshape(*x.shape[:-1], p.heads, p.head_dim) for x in (q, k, v))
            bias = rpb[0] if rpb else None
            out = p.op(q, k, v, rpb=bias, **p.arguments, implementation=implementation)
            return out.reshape(*out.shape[:-2], -1)

        if self.what == "forward":
            return attend(*arrays)
        *given, cotangent = arrays
        gradients = jax.vjp(attend, *given)[1](cotangent)
        # What is not returned is not computed.
        wanted = {"dquery": slice(1), "dkeyvalue": slice(1, 3)}
        return gradients[wanted.get(self.what, slice(None))]


_STAGES = problems.NAT_BASE
FIRST = dataclasses.replace(_STAGES[0], batch=32)
# Stages of NAT-Base, and DiNAT's dilation in the first.
PROBLEMS = [
    FIRST,
    dataclasses.replace(_STAGES[2], batch=128),
    dataclasses.replace(FIRST, name="dinat_base-stage1-d8", dilation=8),
]


LARGE = Problem(
    name="map-256-k80", shape=(256, 256), kernel_size=(80, 80), heads=2, head_dim=128, rpb=False
)
VIDEO = Problem(
    name="video-30x48x80-k18x24x24",
    shape=(30, 48, 80),
    kernel_size=(18, 24, 24),
    heads=2,
    head_dim=128,
    rpb=False,
)
# Windows too large for a tile's whole slab.
LARGE_PROBLEMS = [LARGE, VIDEO]

# Chips that other problems than the first of either kind are compiled for.
_SOME = {VIDEO.name: ("v5e",)} | {p.name: _COMPARED for p in PROBLEMS if p != FIRST}


def all_cases() -> list[TPUCase]:
    """The first problem of either kind for all chips, others for some."""
    return [
        TPUCase(problem=problem, what=what, chip=chip)
        for kind, passes in ((PROBLEMS, PASSES), (LARGE_PROBLEMS, PASSES_OF_LARGE))
        for problem in kind
        for what in passes
        for chip in _SOME.get(problem.name, CHIPS)
    ]


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    return [
        case for case in all_cases() if case.problem in (FIRST, LARGE) and case.chip in _COMPARED
    ]
