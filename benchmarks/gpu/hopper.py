"""What of the kernels for Hopper only a GPU can show, in the order of risk.

    python -m benchmarks.gpu.hopper            # every check, each in a process of its own
    python -m benchmarks.gpu.hopper boxes      # one of them, here

Pallas' interpreter shows that indices, masks, sums and barriers are right. It does not know how
boxes of tokens come out of copies and how shared memory is swizzled, multiplies nothing that is in
registers, and has no registers to hand from one warpgroup to another. So that comes first, each
thing alone, and then whole kernels. A check that hangs is ended, and says so. Interpreted
(NATJAX_INTERPRET=1), the same checks show that they are right themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import natjax
from benchmarks.gpu.hopper_parts import (
    copied_chunks,
    copied_rows,
    copied_scalars,
    expected_chunks,
    gathered_and_scattered,
    program_of,
    weighted_sum,
)
from natjax.kernels import device
from natjax.kernels.backends.mosaic_gpu import settings, support
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.unfused import scattered
from natjax.kernels.plan.blocks import unravel
from natjax.kernels.tuning import settings as chosen
from natjax.kernels.tuning.problems import Problem

_SECONDS = 180
_SMALL = Problem(name="small", shape=(16, 32), kernel_size=(5, 5), heads=2, head_dim=32)
_WIDE = Problem(name="wide", shape=(16, 32), kernel_size=(7, 9), heads=1, head_dim=128, rpb=False)
_ONE = settings((8, 8), (4, 16))
_TWO = settings((8, 16), (4, 16))


# Checks. Each returns an error and what is allowed.


def check_copies(config: settings, problem: Problem = _SMALL) -> tuple[float, float]:
    """Tokens that are copied are those that should be."""
    program = program_of(problem, config)
    x = problem.arrays(dtype="bfloat16")["key"]
    lines = program.layout.lines(x.reshape(1, -1, *x.shape[-2:]))
    actual = np.asarray(copied_chunks(program, lines), np.float32)
    return _error(actual, expected_chunks(program, np.asarray(x[0], np.float32))), 0.0


def check_rows(problem: Problem, config: settings = _ONE) -> tuple[float, float]:
    """Rows that are copied in and out again are what they were."""
    program = program_of(problem, config)
    x = problem.arrays(dtype="bfloat16")["query"]
    x = x.reshape(1, -1, *x.shape[-2:])
    copied = copied_rows(program, program.layout.lines(x))
    return _error(program.layout.tokens(copied, program.heads), x), 0.0


def check_scalars(problem: Problem) -> tuple[float, float]:
    """Numbers of columns that are copied as a box are those that should be."""
    program = program_of(problem, _ONE)
    layout, shape = program.layout, (*problem.shape, problem.heads)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    numbers = layout.scalars(jnp.asarray(x.reshape(1, -1, problem.heads)))
    actual = copied_scalars(program, numbers)
    rows = np.asarray(numbers).reshape(*layout.dilation, problem.heads, *layout.places)
    axes, expected = layout.blocks.axes, []
    for tile in range(layout.blocks.num_tiles):
        index = unravel(tile, [axis.num_tiles for axis in axes])
        located = [axis.locate(np.asarray(i)) for axis, i in zip(axes, index, strict=True)]
        groups, _, slab = zip(*located, strict=True)
        box = np.zeros(layout.chunk, np.float32)
        own = rows[*groups, -1][tuple(map(slice, slab, np.add(slab, layout.chunk)))]
        box[tuple(map(slice, own.shape))] = own
        expected.append(box.ravel())
    return _error(actual, np.stack(expected)), 0.0


def check_registers() -> tuple[float, float]:
    """A product whose left operand is in registers is the product."""
    program = program_of(_WIDE, _ONE)
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.integers(-8, 8, (GROUP_ROWS, program.columns)), jnp.float32)
    x = jnp.asarray(rng.integers(-8, 8, (program.columns, program.width)), jnp.bfloat16)
    expected = np.asarray(weights) @ np.asarray(x, np.float32)
    return _error(weighted_sum(program, weights, x), expected), 0.0


def check_slots() -> tuple[float, float]:
    """Numbers that lie anywhere are found, and put where they belong."""
    program = program_of(_SMALL, _ONE)
    rng = np.random.default_rng(0)
    x = rng.integers(-99, 99, GROUP_ROWS * program.columns)
    places = np.arange(len(x), dtype=np.int32).reshape(GROUP_ROWS, program.columns)
    places = rng.permuted(rng.permutation(places), axis=1)
    expected, there = x[places], places % 3 > 0
    places = np.where(there, places, scattered.NOWHERE)
    found, put = gathered_and_scattered(program, jnp.asarray(x, jnp.bfloat16), jnp.asarray(places))
    error = _error(found, np.where(there, expected, 0))
    return max(error, _error(put[places[there]], expected[there])), 0.0


def check_halves(problem: Problem) -> tuple[float, float]:
    """The unfused ops, with all gradients, against "xla"."""
    arrays = problem.arrays(dtype="bfloat16")
    ops = (getattr(natjax, f"na{problem.ndim}d_{half}") for half in ("qk", "av"))
    qk, av = (functools.partial(op, **problem.arguments) for op in ops)

    def run(implementation: str) -> Any:
        def unfused(arrays: Any) -> Any:
            bias = arrays.get("rpb")
            logits = qk(arrays["query"], arrays["key"], rpb=bias, implementation=implementation)
            return av(jax.nn.softmax(logits), arrays["value"], implementation=implementation)

        out, pull = jax.vjp(unfused, arrays)
        return out, pull(jnp.ones_like(out))

    pairs = zip(*(jax.tree.leaves(run(x)) for x in (support.NAME, "xla")), strict=True)
    return max(_error(x, y) / max(1.0, float(np.abs(y).max())) for x, y in pairs), 0.02


def check_op(
    problem: Problem, config: settings, gradients: tuple[str, ...] = ()
) -> tuple[float, float]:
    """The op, or some of its gradients, against "xla"."""
    arrays = problem.arrays(dtype="bfloat16")

    def run(implementation: str) -> Any:
        op = functools.partial(
            problem.op, **problem.arguments, return_lse=True, implementation=implementation
        )
        if not gradients:
            return op(**arrays)
        own = {name: arrays[name] for name in gradients}
        outputs, pull = jax.vjp(lambda own: op(**arrays | own), own)
        return pull(jax.tree.map(jnp.ones_like, outputs))

    kernels = ("forward", "dquery", "dkeyvalue", "dbias")
    with chosen.using(dict.fromkeys(kernels, config)):
        actual = jax.tree.leaves(run(support.NAME))
    pairs = zip(actual, jax.tree.leaves(run("xla")), strict=True)
    return max(_error(x, y) / max(1.0, float(np.abs(y).max())) for x, y in pairs), 0.02


def check_repeats() -> tuple[float, float]:
    """A thousand runs give the same bits."""
    arrays = _SMALL.arrays(dtype="bfloat16")
    op = functools.partial(_SMALL.op, **_SMALL.arguments, implementation=support.NAME)
    step = jax.jit(lambda a: jax.vjp(lambda a: op(**a), a)[1](a["query"])[0])
    first = jax.tree.map(np.asarray, step(arrays))
    count = 2 if device.is_interpreted() else 1000
    worst = 0.0
    for _ in range(count):
        again = step(arrays)
        worst = max(worst, *(_error(again[name], first[name]) for name in first))
    return worst, 0.0


def _error(actual: Any, expected: Any) -> float:
    """The largest difference; infinite where a number is nan."""
    difference = np.abs(np.asarray(actual, np.float32) - np.asarray(expected, np.float32))
    return float(np.nan_to_num(difference, nan=np.inf).max())


_DILATED = Problem(
    name="dilated", shape=(30, 40), kernel_size=(5, 5), dilation=2, heads=2, kv_heads=1, head_dim=64
)
# Large enough for masks that are computed, and with more query heads than key heads.
_HALVES = Problem(
    name="halves",
    shape=(64, 48),
    kernel_size=(33, 17),
    heads=2,
    kv_heads=1,
    head_dim=64,
    rpb=False,
)
CHECKS: dict[str, Callable[[], tuple[float, float]]] = {
    # Copies of lines, then of boxes, which have the shared memory of products under another shape:
    # bytes, and their swizzle.
    "lines": functools.partial(check_copies, dataclasses.replace(_ONE, boxes=False)),
    "boxes": functools.partial(check_copies, _ONE),
    "boxes-of-parts": functools.partial(check_copies, _ONE, _WIDE),
    "rows": functools.partial(check_rows, _SMALL),
    "rows-of-parts": functools.partial(check_rows, _WIDE),
    "rows-by-line": functools.partial(check_rows, _DILATED),
    # Tiles that the map has no room for: fetched as boxes, stored by lines.
    "rows-past-the-end": functools.partial(check_rows, dataclasses.replace(_SMALL, shape=(20, 32))),
    # Numbers of columns, as boxes of three axes that are swizzled in no way.
    "scalars": functools.partial(check_scalars, _SMALL),
    "scalars-of-groups": functools.partial(check_scalars, _DILATED),
    "products-of-registers": check_registers,
    # Whole kernels: one multiplying warpgroup, then two, which take turns and get more registers.
    "forward": functools.partial(check_op, _SMALL, _ONE),
    "forward-two-warpgroups": functools.partial(check_op, _WIDE, _TWO),
    "dquery": functools.partial(check_op, _SMALL, _ONE, ("query",)),
    "dkeyvalue": functools.partial(check_op, _SMALL, _ONE, ("key", "value")),
    "dbias": functools.partial(check_op, _SMALL, _ONE, ("rpb",)),
    "backward-two-warpgroups": functools.partial(check_op, _WIDE, _TWO, ("query", "key", "value")),
    # Either warpgroup passes by chunks that only the other's rows meet.
    "forward-halves": functools.partial(check_op, _HALVES, _TWO),
    "backward-halves": functools.partial(check_op, _HALVES, _TWO, ("query", "key", "value")),
    "dilated": functools.partial(check_op, _DILATED, _ONE, ("query", "key", "value", "rpb")),
    # What threads address themselves, and the unfused ops, which are made of that.
    "slots": check_slots,
    "unfused": functools.partial(check_halves, _SMALL),
    "unfused-dilated": functools.partial(check_halves, _DILATED),
    # Races that neither shows.
    "repeats": check_repeats,
}


def run_all() -> Iterator[tuple[str, bool, str]]:
    """Each check, in a process of its own: its name, whether it passed, and what it said."""
    for name in CHECKS:
        command = [sys.executable, "-m", "benchmarks.gpu.hopper", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            yield name, False, f"took longer than {_SECONDS} s"
            continue
        said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
        yield name, done.returncode == 0, said.splitlines()[-1] if said else "said nothing"


def main() -> int:
    """Run the checks that are named, or all."""
    if len(sys.argv) > 1:
        for name in sys.argv[1:]:
            error, allowed = CHECKS[name]()
            print(f"{name}: error {error:g}, {allowed:g} allowed")
            if error > allowed:
                return 1
        return 0
    return int(not check_all())


def check_all() -> bool:
    """Run all checks and print what they say; whether all passed."""
    passed = True
    for name, good, said in run_all():
        print(f"{'passed' if good else 'FAILED'} {name}: {said}", flush=True)
        passed &= good
    return passed


def is_for(device_kind: str) -> bool:
    """Whether a device, as JAX names its kind, is one that the checks are for."""
    return support.HOPPER.search(device_kind) is not None


if __name__ == "__main__":
    sys.exit(main())
