"""What is compiled: problems, forward and backward, for each chip."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

import natjax
from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large
from natjax.kernels.spec import CallSpec, Op
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

# Small windows have one kernel for all gradients, large ones two.
type Pass = Literal["forward", "backward", "dquery", "dkeyvalue"]

UNFUSED: tuple[Op, ...] = ("qk", "av")
PASSES: tuple[Pass, ...] = ("forward", "backward")
PASSES_OF_LARGE: tuple[Pass, ...] = ("forward", "dquery", "dkeyvalue")
# Chips that every problem is compiled for, and that CI compares.
_COMPARED = ("v5e", "v6e")
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
    def spec(self) -> CallSpec:
        """What the kernels are specialised for."""
        p = self.problem
        return CallSpec(p.neighborhood, p.head_dim, p.head_dim, "bfloat16", p.rpb)

    @property
    def is_large(self) -> bool:
        """Whether it runs the kernels for large windows."""
        return self.op == "attention" and prefers_large(self.spec, self.problem.heads)

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        if self.op == "attention":
            return f"natjax_tpu_{'large_' if self.is_large else ''}{self.what}"
        return f"natjax_tpu_{self.op}{'_gradients' if self.what == 'backward' else ''}"

    @property
    def maps(self) -> float:
        """Images times blocks of 128 channels."""
        return self.problem.batch * self.problem.heads * self.problem.head_dim / 128

    def arrays(self, sharding: Any) -> list[jax.ShapeDtypeStruct]:
        """Arguments of the op, the bias if it has one; for gradients also that of the output.

        Channels of maps are whole, as modules have them before they become heads.
        """
        p = self.problem

        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        channels = array(jnp.bfloat16, p.batch, *p.shape, p.heads * p.head_dim)
        slots = p.neighborhood.num_neighbors
        weights = array(jnp.bfloat16, p.batch, *p.shape, p.heads, slots)
        bias = [array(jnp.float32, p.heads, *p.neighborhood.bias_shape)] * p.rpb
        given, out = {
            "attention": ([channels, channels, channels, *bias], channels),
            "qk": ([channels, channels, *bias], weights),
            "av": ([weights, channels], channels),
        }[self.op]
        return [*given, *([out] if self.what != "forward" else [])]

    def order(self, x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        """Dimensions of an argument or result from the outermost in memory to the innermost.

        Heads of window slots come before tokens, as the unfused ops hand them to each other.
        """
        n, dims = self.problem.ndim, tuple(range(x.ndim))
        if x.ndim != n + 3:
            return dims
        return (0, n + 1, *dims[1 : n + 1], n + 2)

    def function(self, *arrays: jax.Array) -> Any:
        """Run the pass."""
        if self.what == "forward":
            return self._run(*arrays)
        gradients = jax.vjp(self._run, *arrays[:-1])[1](arrays[-1])
        # What is not returned is not computed.
        wanted = {"dquery": slice(1), "dkeyvalue": slice(1, 3)}
        return gradients[wanted.get(self.what, slice(None))]

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
            count = 3 if self.op == "attention" else 2
            maps, rpb = arrays[:count], arrays[count:]
            out = op(*map(heads, maps), rpb=rpb[0] if rpb else None)
        return out if self.op == "qk" else out.reshape(*out.shape[:-2], -1)


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
LARGE_BIAS = dataclasses.replace(LARGE, name="map-256-k80-bias", rpb=True)
# Windows too large for a tile's whole slab.
LARGE_PROBLEMS = [LARGE, VIDEO, LARGE_BIAS]

# Chips that some problems are compiled for; all others for all.
_SOME = {p.name: _COMPARED for p in (*PROBLEMS[1:], LARGE_BIAS)}


def all_cases() -> list[TPUCase]:
    """Some problems for all chips, others for some; unfused, the first two."""
    fused = [
        TPUCase(problem=problem, what=what, chip=chip)
        for kind, passes in ((PROBLEMS, PASSES), (LARGE_PROBLEMS, PASSES_OF_LARGE))
        for problem in kind
        for what in passes
        for chip in _SOME.get(problem.name, CHIPS)
    ]
    return fused + [
        TPUCase(problem=problem, what=what, chip=chip, op=op)
        for problem in PROBLEMS[:2]
        for op in UNFUSED
        for what in PASSES
        for chip in _COMPARED
    ]


def quick_cases() -> list[TPUCase]:
    """What CI compares with the table: a few seconds each."""
    quick = [
        case for case in all_cases() if case.problem in (FIRST, LARGE) and case.chip in _COMPARED
    ]
    return [case for case in quick if case.op == "attention" or case.chip == "v5e"]


def uncounted_cases() -> list[TPUCase]:
    """What has only to compile, a second or two each: small maps, and what published models have
    besides, for a v5e.
    """
    others = [
        *problems.NAT_TINY,
        *problems.DINAT_TINY,
        dataclasses.replace(problems.NAT_TINY[3], name="nat_tiny-stage4-no-bias", rpb=False),
        Problem(name="single-tile", shape=(4, 8), kernel_size=(3, 3), heads=4, head_dim=32),
        Problem(name="isotropic", shape=(14, 14), kernel_size=(7, 7), heads=6, head_dim=64),
        Problem(name="dinat_large-384", shape=(24, 24), kernel_size=(11, 11), heads=3, head_dim=32),
        Problem(
            name="line", shape=(1024,), kernel_size=(128,), is_causal=True, heads=4, head_dim=64
        ),
    ]
    return [
        TPUCase(problem=problem, what=what, chip="v5e") for problem in others for what in PASSES
    ]
