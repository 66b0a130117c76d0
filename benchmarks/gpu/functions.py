"""The variants as functions of a problem's arrays that can be chained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from benchmarks.gpu import peers
from benchmarks.gpu.plan import Mode, Variant
from natjax.kernels.tuning.problems import Problem

type Arrays = dict[str, Array]
type Step = Callable[[Arrays], Arrays]

_PEERS: dict[str, Callable[[Problem, Arrays], Array]] = {
    "cudnn": peers.cudnn,
    "tokamax": peers.tokamax,
    "fa4": peers.fa4,
}


def structs_of(problem: Problem, variant: Variant, dtype: str) -> dict[str, Any]:
    """Shapes of the arguments of a variant: full attention takes no bias."""
    structs = problem.structs(dtype)
    return {k: v for k, v in structs.items() if k != "rpb" or variant != "cudnn"}


def arrays_of(problem: Problem, variant: Variant, dtype: str) -> Arrays:
    """Standard normal arguments of a variant, drawn on the device: there may be gigabytes."""
    structs = structs_of(problem, variant, dtype)
    keys = jax.random.split(jax.random.key(0), len(structs))
    return {
        name: jax.random.normal(key, x.shape, x.dtype)
        for key, (name, x) in zip(keys, structs.items(), strict=True)
    }


def step(problem: Problem, variant: Variant, mode: Mode) -> Step:
    """One call, from arguments to arguments of the next call.

    Forward, the output is the next query; forward and backward, the gradients of all arguments are
    the next arguments, and the query stands for the gradient of the output. So calls that follow
    one another cannot be merged, and nothing but them is computed.
    """
    attend = _attention(problem, variant)

    def forward(arrays: Arrays) -> Arrays:
        return arrays | {"query": attend(arrays)}

    def forward_and_backward(arrays: Arrays) -> Arrays:
        return jax.vjp(attend, arrays)[1](arrays["query"])[0]

    return forward if mode == "forward" else forward_and_backward


def chain(function: Step, length: int) -> Step:
    """``length`` calls one after the other, as one program; returns what the last one made."""

    def run(arrays: Arrays) -> Arrays:
        for _ in range(length):
            arrays = function(arrays)
        return arrays

    return run


def _attention(problem: Problem, variant: Variant) -> Callable[[Arrays], Array]:
    if variant in _PEERS:
        return functools.partial(_PEERS[variant], problem)
    arguments = dict(problem.arguments)
    if variant == "blocked":
        arguments["stride"] = problem.kernel_size
    implementation = variant if variant in ("xla", "pallas_triton") else _best()
    op: Any = functools.partial(problem.op, **arguments, implementation=implementation)
    return lambda arrays: op(**arrays)


def _best() -> str | None:
    """What a call gets; in a dry run, the kernels for GPUs that a CPU interprets quickest."""
    return None if jax.default_backend() == "gpu" else "pallas_triton"
