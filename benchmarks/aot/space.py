"""Ops whose tokens are split over devices, compiled for a TPU slice and 8 H100 not here.

    python -m benchmarks.aot.space            # print the tables
    python -m benchmarks.aot.space --write    # into benchmarks/results/aot_space.md

It needs the environment that ``scripts/aot-env`` makes. What a device exchanges is read from the
compiled program and written beside the formula of docs/ops.md; the program fails where they differ,
or where anything but halos and sums of the bias gradient is exchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

import natjax
from benchmarks.aot import pool
from benchmarks.aot.report import RESULTS
from benchmarks.aot.step.cases import MACHINES
from benchmarks.aot.step.collectives import Collective, collectives
from benchmarks.aot.step.compiler import topology_of

DOCUMENT = RESULTS / "aot_space.md"

_INTRODUCTION = """\
# Tokens split over devices, compiled for machines that were not there

    python -m benchmarks.aot.space --write

Compiled with jax {jax} on {day}: **nothing here was run.** One image or video in bfloat16, of as
many heads and channels of each as the table says, its tokens split by `natjax.sharding.space` over
all devices; forward is the op, backward the op and the gradients of query, key, value and bias. On
TPUs natjax chooses "mosaic_tpu", beside which "xla" stands. Megabytes (1e6 bytes) are a device's.
*Halo* is what it receives by the formula of docs/ops.md, *received* the results of the
collective-permutes of the compiled program: backward, halos come and their gradients go back.
*Summed* is the gradient of the bias, which all devices share. There is no other exchange, or the
command fails.

"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceCase:
    """An op on a machine.

    Attributes:
      name: of the problem.
      shape: tokens along each axis.
      window: arguments of the op.
      heads: heads, and channels of each.
      machine: name in `MACHINES`.
      parts: devices along each token axis.
      is_backward: whether gradients are taken.
      implementation: of the op; None for the one that natjax chooses.
    """

    name: str
    shape: tuple[int, ...]
    window: Mapping[str, Any]
    heads: tuple[int, int]
    machine: str
    parts: tuple[int, ...]
    is_backward: bool
    implementation: str | None

    @property
    def halo_bytes(self) -> int:
        """What a device receives, in a forward pass."""
        own = [n // parts for n, parts in zip(self.shape, self.parts, strict=True)]
        kernels = np.broadcast_to(self.window["kernel_size"], len(own))
        tokens = 0
        for axis, kernel in enumerate(kernels):
            if self.parts[axis] > 1:
                halo = _halo(own[axis], int(kernel), self.is_periodic[axis], self.parts[axis])
                tokens += halo * math.prod(own) // own[axis]
                own[axis] += halo
        return tokens * 2 * math.prod(self.heads) * 2  # keys and values, of 16 bits

    @property
    def is_periodic(self) -> tuple[bool, ...]:
        """Of each axis."""
        return tuple(np.broadcast_to(self.window.get("is_periodic", False), len(self.shape)))


def _halo(tokens: int, kernel: int, is_periodic: bool, parts: int) -> int:
    """Keys beyond its own that the device needs that needs most before, and most after.

    At a border windows are shifted inside, so a part that is shorter than a window reaches further
    to the other side: the last part of an axis begins its windows ``kernel - tokens`` tokens before
    its own, if that is more than half a window.
    """
    before, after = kernel // 2, kernel - 1 - kernel // 2
    if is_periodic:
        return before + after
    needed = [0, 0]
    for part in range(parts):
        start, stop = part * tokens, (part + 1) * tokens
        length = tokens * parts
        first = min(max(start - before, 0), length - kernel)
        last = min(max(stop - 1 - before, 0), length - kernel) + kernel
        needed = [max(needed[0], start - first), max(needed[1], last - stop)]
    return sum(needed)


def all_cases() -> list[SpaceCase]:
    """A video, a map with large windows, and a weather grid, whose longitude is a circle."""
    video = {"name": "video 30x48x80, K=18x24x24", "shape": (30, 48, 80), "heads": (1, 128)}
    video["window"] = {"kernel_size": (18, 24, 24)}
    large = {"name": "map 256x256, K=80", "shape": (256, 256), "heads": (1, 128)}
    large["window"] = {"kernel_size": (80, 80)}
    weather = {"name": "weather 720x1440, K=7, a circle", "shape": (720, 1440), "heads": (4, 64)}
    weather["window"] = {"kernel_size": (7, 7), "is_periodic": (False, True)}
    parts = {"v5e:4x4": (4, 4), "8xH100": (2, 4)}
    implementations = {"v5e:4x4": (None, "xla"), "8xH100": (None,)}
    return [
        SpaceCase(
            **problem,
            machine=machine,
            parts=(1,) * (len(problem["shape"]) - 2) + parts[machine],
            is_backward=is_backward,
            implementation=implementation,
        )
        for problem in (video, large, weather)
        for machine in parts
        for implementation in implementations[machine]
        for is_backward in (False, True)
    ]


def compile_case(case: SpaceCase) -> dict[str, Any]:
    """Compile; a row of the table, or under "error" why there is none."""
    names = tuple("tyx"[-len(case.shape) :])
    devices = np.asarray(topology_of(MACHINES[case.machine]).devices)
    mesh = Mesh(devices.reshape(case.parts), names)
    place = NamedSharding(mesh, P(None, *names))
    tokens = jax.ShapeDtypeStruct((1, *case.shape, *case.heads), jnp.bfloat16)
    kernel = case.window["kernel_size"]
    bias = jax.ShapeDtypeStruct((case.heads[0], *(2 * k - 1 for k in kernel)), jnp.float32)
    function = _function(case)
    began = time.process_time()
    # Lowering asks for the devices, of which there are none.
    with use_abstract_mesh(mesh.abstract_mesh), natjax.sharding.space(*names):
        jitted = jax.jit(function, in_shardings=(*[place] * 4, NamedSharding(mesh, P())))
        program = jitted.lower(*[tokens] * 4, bias).compile()
    text = program.as_text()
    found, usage = collectives(text), program.memory_analysis()
    return {
        "implementation": "mosaic_tpu" if "tpu_custom_call" in text else "xla",
        "temporaries": usage.temp_size_in_bytes,
        "received": _bytes(found, "collective-permute"),
        "summed": _bytes(found, "all-reduce"),
        "others": sorted({x.kind for x in found} - {"collective-permute", "all-reduce"}),
        "seconds": round(time.process_time() - began),
    }


def _function(case: SpaceCase) -> Callable[..., Any]:
    op = natjax.na3d if len(case.shape) == 3 else natjax.na2d

    def forward(query: Any, key: Any, value: Any, cotangent: Any, bias: Any) -> Any:
        del cotangent
        return op(query, key, value, rpb=bias, implementation=case.implementation, **case.window)

    def backward(query: Any, key: Any, value: Any, cotangent: Any, bias: Any) -> Any:
        def run(*arrays: Any) -> Any:
            return forward(*arrays[:3], None, arrays[3])

        out, pull = jax.vjp(run, query, key, value, bias)
        return out, pull(cotangent)

    return backward if case.is_backward else forward


def _bytes(found: Sequence[Collective], kind: str) -> int:
    return sum(x.bytes for x in found if x.kind == kind)


def failed(case: SpaceCase, row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, if anything."""
    if "error" in row:
        return row["error"]
    wanted = "mosaic_tpu" if case.machine.startswith("v") else "xla"
    if row["implementation"] != (case.implementation or wanted):
        return f'implementation "{row["implementation"]}" was chosen'
    expected = case.halo_bytes * (2 if case.is_backward else 1)
    if row["received"] != expected:
        return f"a device receives {row['received']} bytes, not {expected}"
    return f"exchanged by {row['others']}" if row["others"] else None


def _line(case: SpaceCase, row: Mapping[str, Any]) -> str:
    cells = [case.name, "x".join(map(str, case.heads)), case.machine]
    cells += ["x".join(map(str, case.parts)), row["implementation"]]
    cells.append("backward" if case.is_backward else "forward")
    numbers = (row["temporaries"], case.halo_bytes, row["received"], row["summed"])
    cells += [f"{x / 1e6:.2f}" for x in numbers]
    return "| " + " | ".join([*cells, str(row["seconds"])]) + " |"


def main() -> int:
    """Compile, print, and say what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts of names")
    options = parser.parse_args()
    cases = [
        x for x in all_cases() if all(part in f"{x.name} {x.machine}" for part in options.only)
    ]
    names = (
        "problem, heads, machine, parts, implementation, pass, temporaries, halo, received, summed"
    )
    columns = [*names.split(", "), "CPU s"]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    print("\n".join(lines), flush=True)
    failures = []
    for case, row in zip(cases, pool.run(compile_case, cases, 1, seconds=1800), strict=True):
        if reason := failed(case, row):
            failures.append(f"FAILED {case}: {reason}")
            print(failures[-1], file=sys.stderr, flush=True)
        else:
            lines.append(_line(case, row))
            print(lines[-1], flush=True)
    if options.write and not failures:
        day = datetime.date.today().isoformat()
        head = _INTRODUCTION.format(jax=jax.__version__, day=day)
        DOCUMENT.write_text(head + "\n".join(lines) + "\n")
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
