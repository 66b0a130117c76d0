"""Compiling programs and measuring how long the device is busy with them.

JAX has no device events. What is timed is many calls between two waits: calls are dispatched
without waiting, and programs that are shorter than a dispatch are chained within one compiled
program (`benchmarks.gpu.functions.chain`), so that the device is never idle. The first call, which
settles memory and caches, is not counted. Inputs are the same in every call; those of small
problems may stay in the level 2 cache.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import functions
from benchmarks.gpu.plan import Mode, Variant, moved_bytes
from natjax.kernels.tuning.problems import Problem

# Calls shorter than this are chained, to at most so many.
_CHAINED_SECONDS = 300e-6
_LONGEST_CHAIN = 16
# To tell how long a call is before it is measured; any recent GPU will do.
_BANDWIDTH = 3e12
_ROUND_SECONDS = 0.02
_MOST_ROUNDS = 9
_FEWEST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled chain of calls.

    Attributes:
      run: the compiled program.
      calls: calls in the chain.
      memory: bytes that one call takes besides its arguments: results and temporaries.
    """

    run: Callable[..., Any]
    calls: int
    memory: int


def compile_program(problem: Problem, variant: Variant, mode: Mode, dtype: str) -> Program:
    """Compile a variant; raises whatever keeps it from running here."""
    arrays = functions.structs_of(problem, variant, dtype)
    one = functions.step(problem, variant, mode)
    single = jax.jit(one).lower(arrays).compile()
    usage = single.memory_analysis()
    memory = usage.temp_size_in_bytes + usage.output_size_in_bytes
    # The plain implementation is many kernels a call, and longer than a dispatch anyway.
    calls = 1 if variant == "xla" else chain_length(problem, mode, dtype)
    if calls == 1:
        return Program(single, 1, memory)
    program = jax.jit(functions.chain(one, calls)).lower(arrays).compile()
    return Program(program, calls, memory)


def chain_length(problem: Problem, mode: Mode, dtype: str) -> int:
    """How many calls to chain, from the bytes that each moves."""
    if jax.default_backend() != "gpu":
        return 2
    seconds = moved_bytes(problem, mode, jnp.dtype(dtype).itemsize) / _BANDWIDTH
    return min(_LONGEST_CHAIN, math.ceil(_CHAINED_SECONDS / seconds))


def measure(program: Program, argument: Any, budget: float) -> dict[str, float]:
    """Seconds a call, in the median over the rounds, and half the distance of the quartiles.

    Args:
      program: what to run.
      argument: its argument.
      budget: seconds that the rounds may take in all, roughly; three are run anyway.
    """
    jax.block_until_ready(program.run(argument))
    once = _seconds(program.run, argument, 1)
    repeats = max(1, min(100, round(_ROUND_SECONDS / once)))
    rounds = int(budget / (once * repeats))
    rounds = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, rounds))
    times = [
        _seconds(program.run, argument, repeats) / (repeats * program.calls) for _ in range(rounds)
    ]
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "ms": statistics.median(times) * 1e3,
        "spread_ms": (high - low) / 2 * 1e3,
        "rounds": rounds,
        "calls": repeats * program.calls,
    }


def _seconds(run: Callable[..., Any], argument: Any, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats - 1):
        run(argument)
    jax.block_until_ready(run(argument))
    return time.perf_counter() - begin


def ceilings(size: int) -> dict[str, float]:
    """What this device reaches: bytes a second when copying, flops a second in bfloat16 products.

    Args:
      size: rows and columns of the matrices; the copied array is as large as eight of them.
    """
    x = jnp.ones((size, 4 * size), jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(x).compile()
    copied = 2 * x.nbytes / (measure(Program(copy, 1, 0), x, 1.0)["ms"] / 1e3)
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    multiplied = 2 * size**3 / (measure(Program(product, 1, 0), a, 1.0)["ms"] / 1e3)
    return {"copy_bytes_per_second": copied, "matmul_flops_per_second": multiplied}
