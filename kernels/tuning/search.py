"""Measuring which settings of a kernel are fastest on the present GPU.

Each kernel of a call is compiled and timed alone, forward or backward, through the public op: a
gradient that is not asked for is not computed. (The kernels "dkeyvalue" and "dbias" take what
"dquery" makes, and are timed with it.) First come blocks of rows and columns, those of the
least estimated work; then warps and stages for the best of them. `tune` yields what it finds as it
goes. Kernels run many times over the same arrays, so small ones find them in the cache.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from natjax.kernels import api, device
from natjax.kernels.spec import CallSpec, Kernel, Op, kernels_of
from natjax.kernels.tuning import settings
from natjax.kernels.tuning.problems import Problem

# How many of the fastest blocks are tried with other warps and stages.
_FINALISTS = 2
# A kernel is timed over as many runs as last this long, a good deal more than the clock's error.
_SECONDS_OF_RUNS = 2e-3
_MOST_RUNS = 50
# What is this much slower than the best at first sight is not timed again.
_HOPELESS = 1.5
# Largest difference from the result of "xla", of its largest entry.
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_FAIL_ON_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}

# Arguments whose gradient a kernel alone computes; none, if it is the forward pass.
_GRADIENTS: dict[Op, dict[Kernel, tuple[str, ...]]] = {
    "attention": {
        "forward": (),
        "dquery": ("query",),
        "dkeyvalue": ("key", "value"),
        "dbias": ("rpb",),
    },
    "qk": {"qk": (), "av": ("query",), "av_transposed": ("key",)},
    "av": {"av": (), "av_transposed": ("value",), "qk": ("weights",)},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The fastest settings of a kernel.

    Attributes:
      problem: name of the problem.
      kernel: which kernel.
      spec: what the settings are for.
      config: the settings, None where no candidate works.
      seconds: time of the kernel with them.
      suggested_seconds: time with the settings by rule of thumb; nan where those do not work.
      measured: number of candidates that were timed.
      skipped: how many were not, by reason.
    """

    problem: str
    kernel: Kernel
    spec: CallSpec
    config: Any | None
    seconds: float
    suggested_seconds: float
    measured: int
    skipped: dict[str, int]


def require_gpu() -> None:
    """Check that there is something to tune for.

    Raises:
      NotImplementedError: the device is not a GPU, and kernels are not interpreted either.
    """
    platform = device.target().platform
    if platform != "gpu" and not device.is_interpreted():
        raise NotImplementedError(
            f"tuning needs an NVIDIA GPU, on which candidates are timed; got a {platform} device"
        )


def tune(
    problems: Sequence[Problem],
    *,
    backend: str = "pallas_triton",
    dtype: str = "bfloat16",
    ops: Sequence[Op] = ("attention",),
    limit: int = 24,
    repeats: int = 7,
    begin: Callable[[str, Kernel], None] = lambda problem, kernel: None,
) -> Iterator[Result]:
    """Find the fastest settings of each kernel of each problem, one after the other.

    Problems that differ in batch or heads alone are one, the first.

    Args:
      backend: whose kernels; it has a module ``candidates`` with functions ``candidates`` and
        ``variants``.
      problems: what to tune for; additional keys are left out, as no kernel sees them.
      dtype: of all arrays.
      ops: "attention" for the fused op, "qk" and "av" for the unfused ones.
      limit: the most blocks to try for each kernel, and for each of the best of these the most
        other warps and stages.
      repeats: timings of each candidate, of which the median counts.
      begin: called with the problem's name and the kernel before each search.

    Raises:
      NotImplementedError: there is no GPU, or the kernels do not take a problem.
    """
    require_gpu()
    done: set[tuple[str, Kernel]] = set()
    for problem, op in itertools.product(problems, ops):
        case = _Case.of(op, problem, dtype, backend)
        found: dict[Kernel, Any] = {}
        for kernel in kernels_of(op, case.spec.has_bias):
            if (case.spec.key, kernel) in done:
                continue
            if kernel == "dbias" and _sums_bias(found, case.spec):
                continue
            done.add((case.spec.key, kernel))
            begin(problem.name, kernel)
            with settings.using(found):
                result = _Search(case, kernel, repeats).run(limit)
            if result.config is not None:
                found[kernel] = result.config
            yield result


def _sums_bias(found: dict[Kernel, Any], spec: CallSpec) -> bool:
    """Whether there is no kernel "dbias" with what was found for "dquery"."""
    return "dquery" in found and found["dquery"].sums_bias(spec)


@dataclasses.dataclass(frozen=True)
class _Case:
    """An op on a problem's arrays.

    Attributes:
      op: which op.
      name: of the problem.
      function: the op as a function of its arrays and ``implementation``.
      arrays: its arguments.
      backend: whose kernels are measured.
      spec: what their settings depend on.
    """

    op: Op
    name: str
    function: Callable[..., Array]
    arrays: dict[str, Array]
    backend: str
    spec: CallSpec

    @property
    def measured(self) -> Callable[[dict[str, Array]], Array]:
        """The op on the backend."""
        return functools.partial(self.function, implementation=self.backend)

    @property
    def options(self) -> Any:
        """The module that knows what there is to choose from."""
        return importlib.import_module(f"natjax.kernels.backends.{self.backend}.candidates")

    @classmethod
    def of(cls, op: Op, problem: Problem, dtype: str, backend: str) -> _Case:
        problem = dataclasses.replace(problem, extra=0, rpb=problem.rpb and op != "av")
        arguments = problem.arguments
        arrays = problem.arrays(dtype=dtype)
        if op == "qk":
            del arrays["value"]
        elif op == "av":
            query, _ = arrays.pop("query"), arrays.pop("key")
            arrays["weights"] = _weights(query, problem.neighborhood.num_neighbors)
        suffix = "" if op == "attention" else f"_{op}"
        named = getattr(api, f"na{problem.ndim}d{suffix}")

        def function(arrays: dict[str, Array], implementation: str) -> Array:
            return named(**arrays, **arguments, implementation=implementation)

        with settings.watching() as seen:
            jax.eval_shape(functools.partial(function, implementation=backend), arrays)
        return cls(op, problem.name, function, arrays, backend, seen[0].spec)


def _weights(query: Array, neighbors: int) -> Array:
    shape = (*query.shape[:-1], neighbors)
    draws = np.random.default_rng(1).uniform(0, 2 / neighbors, shape)
    return jnp.asarray(draws, query.dtype)


class _Search:
    """The search for the fastest settings of one kernel of a call."""

    def __init__(self, case: _Case, kernel: Kernel, repeats: int) -> None:
        self._case = case
        self._kernel: Kernel = kernel
        self._repeats = repeats
        self._trace, self._inputs = _program(case, kernel)
        self._expected = _expected(case, kernel, self._inputs)
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._skipped: dict[Any, str] = {}

    def run(self, limit: int) -> Result:
        spec, options = self._case.spec, self._case.options
        blocks = options.candidates(self._kernel, spec, limit)
        times = self._measure(blocks)
        finalists = sorted(times, key=times.__getitem__)[:_FINALISTS]
        others = [options.variants(self._kernel, spec, config)[:limit] for config in finalists]
        # The suggested settings stay in: what is compared is measured together.
        times = self._measure([blocks[0], *finalists, *itertools.chain(*others)])
        best = min(times, key=times.__getitem__, default=None)
        return Result(
            problem=self._case.name,
            kernel=self._kernel,
            spec=spec,
            config=best,
            seconds=times[best] if best else math.nan,
            suggested_seconds=times.get(blocks[0], math.nan),
            measured=len(self._programs),
            skipped=dict(collections.Counter(self._skipped.values())),
        )

    def _measure(self, chosen: Iterable[Any]) -> dict[Any, float]:
        """Median time of each candidate that works; they take turns."""
        chosen = list(dict.fromkeys(chosen))
        self._compile([x for x in chosen if x not in self._programs and x not in self._skipped])
        programs = {x: self._programs[x] for x in chosen if x in self._programs}
        first = {x: _seconds(program, self._inputs, 1) for x, program in programs.items()}
        if not first:
            return {}
        least = min(first.values())
        runs = min(_MOST_RUNS, math.ceil(_SECONDS_OF_RUNS / least))
        hopeful = [x for x in first if first[x] <= _HOPELESS * least or x == chosen[0]]
        rounds = [
            [_seconds(programs[x], self._inputs, runs) for x in hopeful]
            for _ in range(self._repeats)
        ]
        times = map(statistics.median, zip(*rounds, strict=True))
        return dict(zip(hopeful, times, strict=True))

    def _compile(self, chosen: Sequence[Any]) -> None:
        """Compile candidates and check their results; those that fail are skipped for good."""
        traced = {x: self._attempt(x, lambda x=x: self._lower(x)) for x in chosen}
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            futures = {x: pool.submit(_compile, y) for x, y in traced.items() if y is not None}
            for config, future in futures.items():
                program = self._attempt(config, lambda x=future: self._checked(x.result()))
                if program is not None:
                    self._programs[config] = program
        finally:
            pool.shutdown(cancel_futures=True)

    def _lower(self, config: Any) -> jax.stages.Lowered:
        with settings.using({self._kernel: config}):
            return jax.jit(self._trace()).lower(*self._inputs)

    def _checked(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The candidate, if it computes what "xla" does."""
        actual = jax.device_get(program(*self._inputs))
        tolerance = _TOLERANCE[self._case.spec.dtype]
        pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(self._expected), strict=True)
        if not all(_agree(x, y, tolerance) for x, y in pairs):
            raise ArithmeticError('another result than "xla"')
        return program

    def _attempt[T](self, config: Any, action: Callable[[], T]) -> T | None:
        """The result of a step, or None with the reason noted; a candidate may fail in any way."""
        try:
            return action()
        except Exception as error:
            self._skipped[config] = _reason(error)
            return None


def _program(
    case: _Case, kernel: Kernel
) -> tuple[Callable[[], Callable[..., Any]], tuple[Any, ...]]:
    """One kernel of a call alone.

    Returns:
      What makes a new function to trace, since JAX does not trace the same one twice; and the
      function's arguments.
    """
    wanted = _GRADIENTS[case.op][kernel]
    if not wanted:
        return lambda: functools.partial(case.measured), (case.arrays,)

    def differentiate(arrays: dict[str, Array]) -> Any:
        return jax.vjp(case.measured, arrays)

    out, pull = jax.jit(differentiate)(case.arrays)
    draws = np.random.default_rng(2).standard_normal(out.shape)
    cotangent = jnp.asarray(draws, out.dtype)

    def trace() -> Callable[..., Any]:
        # What is kept for the backward pass does not depend on its settings, but the function does.
        _, shapes = jax.eval_shape(functools.partial(differentiate), case.arrays)
        structure = jax.tree.structure(shapes)

        def run(kept: list[Array], cotangent: Array) -> list[Array]:
            (gradients,) = jax.tree.unflatten(structure, kept)(cotangent)
            return [gradients[name] for name in wanted]

        return run

    return trace, (jax.tree.leaves(pull), cotangent)


def _expected(case: _Case, kernel: Kernel, inputs: tuple[Any, ...]) -> Any:
    """What a kernel should compute, by an implementation that has none."""
    function = functools.partial(case.function, implementation="xla")
    wanted = _GRADIENTS[case.op][kernel]

    @jax.jit
    def run(arrays: dict[str, Array]) -> Any:
        out, pull = jax.vjp(function, arrays)
        if not wanted:
            return out
        (gradients,) = pull(inputs[-1])
        return [gradients[name] for name in wanted]

    return jax.device_get(run(case.arrays))


def _compile(lowered: jax.stages.Lowered) -> Callable[..., Any]:
    on_gpu = device.target().platform == "gpu"
    return lowered.compile(compiler_options=_FAIL_ON_SPILLS if on_gpu else None)


def _seconds(program: Callable[..., Any], inputs: tuple[Any, ...], runs: int) -> float:
    """Time of one run, of several that are queued together; a device runs them in order."""
    begin = time.perf_counter()
    result = None
    for _ in range(runs):
        result = program(*inputs)
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / runs


def _agree(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    x, y = (np.asarray(array, np.float64) for array in (actual, expected))
    finite = np.isfinite(y)
    # Empty slots of causal windows hold -inf; nan agrees with nothing.
    if not np.array_equal(x[~finite], y[~finite]):
        return False
    scale = np.abs(y[finite]).max(initial=0)
    return bool((np.abs(x[finite] - y[finite]) <= tolerance * scale).all())


def _reason(error: Exception) -> str:
    text = str(error)
    if "spill" in text:
        return "spills registers"
    if "shared memory" in text.lower():
        return "too much shared memory"
    line = (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:100]}"
