"""Neighborhood attention against the plain formulation, forward and backward, in one run.

    python benchmarks/ops.py                       # the four stages of NAT-Tiny, as in the README
    python benchmarks/ops.py --problems nat_base dinat_tiny --json results.json
    python benchmarks/ops.py --sweep               # which slab overhead suits this machine
    python benchmarks/ops.py --memory              # temporaries, also where windows are large
    python -m benchmarks.gpu                       # another program: the kernels on a GPU

Two implementations of the same function are timed in turns, so that both see the same machine;
what counts is the ratio. Time is the median over the repeats; memory is what XLA reserves for
temporaries.
"""

import argparse
import dataclasses
import datetime
import json
import math
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import natjax
from natjax.kernels.backends.xla import fused
from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

SETS = {
    "nat_tiny": problems.NAT_TINY,
    "nat_base": problems.NAT_BASE,
    "dinat_tiny": problems.DINAT_TINY,
}

# Where all logits of a query tile and its slab, or all slabs at once, would take gigabytes.
LARGE = (
    Problem(
        name="video 30x48x80, K=18x24x24",
        shape=(30, 48, 80),
        kernel_size=(18, 24, 24),
        heads=2,
        head_dim=64,
        rpb=False,
    ),
    Problem(
        name="image 256x256, K=80",
        shape=(256, 256),
        kernel_size=(80, 80),
        heads=4,
        head_dim=64,
        rpb=False,
    ),
    Problem(
        name="weather 720x1440, K=7",
        shape=(720, 1440),
        kernel_size=(7, 7),
        heads=4,
        head_dim=32,
    ),
)


def gather_attention(problem: Problem, query: Array, key: Array, value: Array, rpb: Array) -> Array:
    """The plain formulation: gather the K neighbors of each query, then einsum."""
    hood = problem.neighborhood
    neighbors, _ = hood.neighbor_table()
    tokens = np.arange(hood.num_tokens)[:, None]
    bias = rpb[:, *(index[tokens, neighbors] for index in hood.dense_bias_index())]

    def flat(x: Array) -> Array:
        return x.reshape(x.shape[0], hood.num_tokens, *x.shape[-2:])

    scaled = flat(query) * query.shape[-1] ** -0.5
    logits = jnp.einsum("btnd,btknd->btnk", scaled, flat(key)[:, neighbors])
    weights = jax.nn.softmax(logits + jnp.moveaxis(bias, 0, 1)[None])
    out = jnp.einsum("btnk,btknd->btnd", weights, flat(value)[:, neighbors])
    return out.reshape(query.shape)


def tiled_attention(problem: Problem, **arrays: Array) -> Array:
    """The implementation "xla"."""
    return problem.op(**arrays, **problem.arguments, implementation="xla")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Forward and backward of one implementation on one problem, ready to run."""

    run: Callable[[dict[str, Array]], object]
    temporaries: int

    @classmethod
    def of(cls, attention: Callable[..., Array], problem: Problem) -> "Compiled":
        """Compile the gradients of a loss for all arguments."""

        def loss(arrays: dict[str, Array]) -> Array:
            return jnp.sum(attention(problem, **arrays) * arrays["query"])

        compiled = jax.jit(jax.value_and_grad(loss)).lower(problem.arrays()).compile()
        return cls(compiled, compiled.memory_analysis().temp_size_in_bytes)

    def seconds(self, arrays: dict[str, Array]) -> float:
        """Wall time of one run, after one that settles memory and caches for it."""
        jax.block_until_ready(self.run(arrays))
        begin = time.perf_counter()
        jax.block_until_ready(self.run(arrays))
        return time.perf_counter() - begin


def compare(problem: Problem, repeats: int) -> dict[str, float | str]:
    """Time and memory of the baseline and of natjax, measured in turns."""
    arrays = problem.arrays()
    both = [Compiled.of(attention, problem) for attention in (gather_attention, tiled_attention)]
    results = [jax.block_until_ready(each.run(arrays)) for each in both]
    for expected, actual in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    rounds = [[each.seconds(arrays) for each in both] for _ in range(repeats)]
    baseline, natjax_time = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "problem": problem.name,
        "baseline_ms": baseline * 1e3,
        "natjax_ms": natjax_time * 1e3,
        "speedup": statistics.median(slow / fast for slow, fast in rounds),
        "baseline_mb": both[0].temporaries / 1e6,
        "natjax_mb": both[1].temporaries / 1e6,
        "memory_ratio": both[0].temporaries / both[1].temporaries,
    }


def geometric_mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def print_row(*cells: object) -> None:
    """One row of the table, in Markdown."""
    texts = [f"{x:.1f}" if isinstance(x, float) else str(x) for x in cells]
    print("| " + " | ".join(texts) + " |", flush=True)


def measure(chosen: list[Problem], repeats: int) -> list[dict[str, float | str]]:
    """Print the comparison of each problem as it is measured, then the geometric means."""
    print_row(
        "problem", "gather ms", "natjax ms", "times faster", "gather MB", "natjax MB", "of it"
    )
    print_row(*["---"] * 7)
    rows = []
    for problem in chosen:
        row = compare(problem, repeats)
        rows.append(row)
        print_row(*list(row.values())[:6], f"1/{row['memory_ratio']:.1f}")
    speedup, memory = (
        geometric_mean([float(row[name]) for row in rows]) for name in ("speedup", "memory_ratio")
    )
    print_row("geometric mean", "", "", speedup, "", "", f"1/{memory:.1f}")
    return rows


def sweep(chosen: list[Problem], repeats: int) -> None:
    """Time of natjax for several values of the one constant its tiles depend on."""
    arrays = {problem.name: problem.arrays() for problem in chosen}
    print_row("slab overhead", *(f"{problem.name} ms" for problem in chosen))
    print_row(*["---"] * (len(chosen) + 1))
    for overhead in (16, 32, 64, 128, 256):
        cpu = fused.TILINGS["cpu"]
        fused.TILINGS["cpu"] = dataclasses.replace(cpu, slab_overhead=overhead)
        jax.clear_caches()
        compiled = {problem.name: Compiled.of(tiled_attention, problem) for problem in chosen}
        times = [
            statistics.median(each.seconds(arrays[name]) for _ in range(repeats)) * 1e3
            for name, each in compiled.items()
        ]
        print_row(overhead, *times)


def memory(chosen: list[Problem]) -> list[dict[str, float | str]]:
    """Print what "xla" reserves for temporaries, over the size of one input; nothing is run."""
    print_row("problem", "one input MB", "forward MB", "of it", "backward MB", "of it")
    print_row(*["---"] * 6)
    rows: list[dict[str, float | str]] = []
    for problem in chosen:
        structs = problem.structs()
        query = structs["query"]

        def forward(arrays: dict[str, Array], problem: Problem = problem) -> Array:
            return tiled_attention(problem, **arrays)

        def backward(arrays: dict[str, Array], cotangent: Array) -> object:
            return jax.vjp(forward, arrays)[1](cotangent)

        size = math.prod(query.shape) * query.dtype.itemsize
        row: dict[str, float | str] = {"problem": problem.name, "input_mb": size / 1e6}
        for name, function, arguments in (
            ("forward", forward, (structs,)),
            ("backward", backward, (structs, query)),
        ):
            compiled = jax.jit(function).lower(*arguments).compile()
            used = compiled.memory_analysis().temp_size_in_bytes
            row |= {f"{name}_mb": used / 1e6, f"{name}_ratio": used / size}
        rows.append(row)
        print_row(*(f"{x:.2f}" if isinstance(x, float) else x for x in row.values()))
    return rows


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {jax.default_backend()}",
        "jax": jax.__version__,
        "natjax": natjax.__version__,
        "command": " ".join(["python benchmarks/ops.py", *sys.argv[1:]]),
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=SETS, default=["nat_tiny"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, help="also write the results here")
    parser.add_argument("--sweep", action="store_true", help="measure tile choices instead")
    parser.add_argument("--memory", action="store_true", help="print temporaries instead")
    options = parser.parse_args()
    chosen = [
        dataclasses.replace(problem, batch=options.batch)
        for name in options.problems
        for problem in SETS[name]
    ]
    if options.sweep:
        return sweep(chosen, options.repeats)
    rows = memory([*chosen, *LARGE]) if options.memory else measure(chosen, options.repeats)
    if options.json:
        document = {"environment": environment(), "options": vars(options), "rows": rows}
        options.json.write_text(json.dumps(document, indent=2, default=str) + "\n")
    return None


if __name__ == "__main__":
    main()
