"""Compile the kernels for Hopper for an H100, on a machine that has none.

    python -m benchmarks.aot.in_mosaic              # into results/aot_mosaic_gpu.{md,json}
    python -m benchmarks.aot.in_mosaic --check      # some, against the committed table
    python -m benchmarks.aot.in_mosaic --only video # print those whose names have all of these

Whole ops are compiled, forward and backward, and Mosaic writes down each kernel on the way; ptxas
and nvdisasm say what becomes of it. One op is compiled for eight GPUs, too, and what they exchange
is read from the program. It needs the environment that ``scripts/aot-env`` makes; ``make aot`` sees
to that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from benchmarks.aot import __main__ as aot
from benchmarks.aot import cases, compiler, pool, report, sass
from benchmarks.aot.chips import CHIPS
from benchmarks.aot.step.cases import MACHINES
from benchmarks.aot.step.collectives import collectives
from benchmarks.aot.step.compiler import topology_of
from natjax.kernels.backends import mosaic_gpu
from natjax.kernels.spec import CallSpec, Kernel
from natjax.kernels.tuning import settings
from natjax.kernels.tuning.problems import Problem

TABLE = report.RESULTS / "aot_mosaic_gpu.json"
DOCUMENT = report.RESULTS / "aot_mosaic_gpu.md"
_CHIP = "h100"
_PROBLEMS = (
    "nat_tiny-stage1-d1",
    "nat_tiny-stage3-d1",
    "dinat_tiny-stage1-d8",
    "heads-of-64",
    "heads-of-128",
    "image-256",
    "video-30x48x80",
)
_QUICK = ("nat_tiny-stage1-d1", "image-256")
# One op on several devices, over which batch and heads are split.
_MACHINE, _SPLIT = "8xH100", (4, 2)
# Problems with heads up to this size should have two multiplying warpgroups on a multiprocessor.
_SHARING_WIDTH = 64
# What a warp's part of a multiprocessor does in a clock: an instruction, 4 exponentials, and 512
# multiply-adds of half-precision matrices.
_EXPONENTIAL_CLOCKS = 32 / 4
_PRODUCTS_A_CLOCK = 512
# Registers of a multiprocessor, which threads have in eights, and its shared memory, of which the
# system takes a part for each block of threads.
_REGISTERS, _REGISTER_UNIT = 65536, 8
_SHARED, _SHARED_OF_SYSTEM = 228 * 1024, 1024


def problems(quick: bool) -> list[Problem]:
    """What is compiled, in bfloat16."""
    names = _QUICK if quick else _PROBLEMS
    return [p for p, dtype in cases.PROBLEMS if p.name in names and dtype == "bfloat16"]


def kernels_of(problem: Problem) -> list[Kernel]:
    """The kernels of a problem: those of the fused op, and of the unfused ones where they fit."""
    return list(cases.kernels_of(problem))


def compile_problem(problem: Problem) -> dict[str, Any]:
    """What each kernel of a problem takes, and does in its loop over chunks."""
    kernels, rows = kernels_of(problem), {}
    # A program that has all of them: the gradients of the one op, and of the others.
    for kernel, own in (("dquery", cases.FUSED), ("qk", cases.UNFUSED)):
        own = [x for x in own if x in kernels]
        if not own:
            continue
        case = cases.Case(problem=problem, dtype="bfloat16", kernel=kernel, chip=_CHIP)
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {
                "MOSAIC_GPU_DUMP_TO": folder,
                "MOSAIC_GPU_DUMP_PTX": "1",
                "MOSAIC_GPU_DUMP_MLIR_PASSES": "1",
            }
            compiler.compile_op(case, mosaic_gpu.NAME)
            rows |= {x: _figures(folder, problem, x) for x in own}
    return {kernel: rows[kernel] for kernel in kernels}


def _figures(folder: str, problem: Problem, kernel: Kernel) -> dict[str, Any]:
    spec = CallSpec(
        problem.neighborhood, problem.head_dim, problem.head_dim, "bfloat16", problem.rpb
    )
    chip = CHIPS[_CHIP]
    config = settings.resolve(mosaic_gpu, kernel, spec, chip.name)[0]
    # The longest, where there are several: logits have a table, their gradients none.
    named = pathlib.Path(folder).glob(f"natjax_{kernel}_[0-9].ptx")
    ptx = max(named, key=lambda path: path.stat().st_size)
    passes = ptx.with_suffix(".mlir-passes.log")
    shared = re.search(r"dynamic_shared_memory_size %c(\d+)_i32", passes.read_text())
    registers, spilled, text = compiler.assemble(str(ptx), chip.arch)
    code = ptx.read_text()
    row: dict[str, Any] = {
        "tile": config.tile,
        "chunk": config.chunk,
        "warps": config.num_warps,
        "stages": config.num_stages,
        "registers": registers,
        "spill": spilled,
        "shared": int(shared.group(1)) if shared else 0,
        "instructions": sass.length(text),
        "boxes": len(re.findall(r"cp\.async\.bulk\.tensor\.\S*im2col", code)),
        "copies": len(re.findall(r"cp\.async\.bulk\.tensor", code)),
    }
    loop = sass.main_loop(text)
    if loop is None or not loop.products:  # there is one chunk, and so no loop over them
        return row
    # Of one warpgroup, which has 64 rows.
    columns = math.prod(config.chunk)
    exponentials, products = sass.needed(kernel, 64, columns, problem.head_dim, 4)
    return row | {
        "loop": loop.instructions,
        "loop_spills": loop.spills,
        "exponentials": [loop.exponentials, exponentials],
        "products": [loop.products, products],
    }


def compile_for_devices(problem: Problem) -> dict[str, Any]:
    """What devices exchange that have parts of batch and heads, forward and backward."""
    devices = np.asarray(topology_of(MACHINES[_MACHINE]).devices)
    mesh = Mesh(devices.reshape(_SPLIT), ("batch", "heads"))
    tokens = P("batch", *[None] * problem.ndim, "heads")
    shardings = {
        name: NamedSharding(mesh, P("heads") if name == "rpb" else tokens)
        for name in problem.structs()
    }
    case = cases.Case(problem=problem, dtype="bfloat16", kernel="dquery", chip=_CHIP)
    function = cases.function_of(case, mosaic_gpu.NAME)
    # Lowering asks for the devices, of which there are none.
    with use_abstract_mesh(mesh.abstract_mesh):
        jitted = jax.jit(function, in_shardings=(shardings,))
        text = jitted.lower(problem.structs("bfloat16")).compile().as_text()
    found = [f"{x.kind} of {_told(x.shapes)}" for x in collectives(text)]
    kernels = sorted(kernel for kernel in cases.FUSED if f"natjax_{kernel}" in text)
    return {"exchanged": found, "kernels": kernels}


def _told(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype}[{','.join(map(str, dims))}]" for dtype, dims in shapes)


def blocks_of_multiprocessor(row: Mapping[str, Any]) -> tuple[int, int]:
    """Blocks of threads that a multiprocessor has room for: by registers, and by shared memory."""
    of_thread = -(-row["registers"] // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = _REGISTERS // (of_thread * 32 * row["warps"])
    return by_registers, _SHARED // (row["shared"] + _SHARED_OF_SYSTEM)


def clocks(row: Mapping[str, Any]) -> dict[str, float]:
    """What the loop takes of each of a multiprocessor's units, for a chunk of a warpgroup."""
    return {
        "instructions": row["loop"],
        "exponentials": row["exponentials"][0] * _EXPONENTIAL_CLOCKS,
        "products": row["products"][0] / _PRODUCTS_A_CLOCK,
    }


def too_few(problem: Problem, row: Mapping[str, Any]) -> bool:
    """Whether a multiprocessor has room for a single multiplying warpgroup, and should for more."""
    multiplying = math.prod(row["tile"]) // 64 * min(blocks_of_multiprocessor(row))
    return problem.head_dim <= _SHARING_WIDTH and multiplying < 2


def wrongly_exchanged(row: Mapping[str, Any]) -> str | None:
    """What devices exchange besides the sum of the bias' gradient, if anything."""
    if "error" in row:
        return row["error"]
    if row["kernels"] != sorted(cases.FUSED):
        return f"the program for several devices has the kernels {row['kernels']}"
    sums = [x for x in row["exchanged"] if x.startswith("all-reduce of f32")]
    if len(row["exchanged"]) != 1 or not sums:
        return f"devices exchange {row['exchanged']}, not one sum"
    return None


def failed(rows: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Why each kernel that failed did: an error, a new spill, or a new figure."""
    reasons = {}
    for key, row in rows.items():
        before = known.get(key)
        if "error" in row:
            reasons[key] = row["error"]
        elif row.get("loop_spills"):
            reasons[key] = f"spills registers in its loop, {row['spill']} bytes in all"
        elif row["spill"] > (before or row).get("spill", 0):
            reasons[key] = f"spills {row['spill']} bytes of registers"
        elif before and row["instructions"] > 1.05 * before["instructions"]:
            reasons[key] = (
                f"has {row['instructions']} instructions, not {before['instructions']}: if they "
                "are to be lived with, python -m benchmarks.aot.in_mosaic writes them down"
            )
    return reasons


def document(
    rows: Mapping[str, Any], devices: Mapping[str, Any], environment: Mapping[str, str]
) -> str:
    """All of it in Markdown."""
    split = " by ".join(map(str, _SPLIT))
    exchanged = "; ".join(devices.get("exchanged", ["?"]))
    parts = [_INTRODUCTION.format(**environment, split=split, exchanged=exchanged)]
    for problem in problems(quick=False):
        lines = [_HEADER, ["---"] * len(_HEADER)]
        for kernel in kernels_of(problem):
            row = rows.get(f"{problem.name}/{kernel}")
            if row is not None:
                lines.append(_line(kernel, row))
        parts.append(f"\n## {problem.name}\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines))
    return "".join(parts)


_HEADER = [
    "kernel",
    "tile",
    "chunk",
    "warps, stages",
    "registers",
    "shared",
    "blocks",
    "instructions",
    "copies (boxes)",
    "clocks of a chunk",
    "limiter",
]


def _line(kernel: str, row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [kernel, f"**{row['error']}**", *[""] * (len(_HEADER) - 2)]
    sides = ["x".join(map(str, row[name])) for name in ("tile", "chunk")]
    where = " in the loop" if row.get("loop_spills") else " outside of the loop"
    spill = f", **{row['spill']} B spilled**{where}" if row["spill"] else ""
    cells = [
        kernel,
        *sides,
        f"{row['warps']}, {row['stages']}",
        f"{row['registers']}{spill}",
        f"{row['shared'] / 1024:.0f} KiB",
        str(min(blocks_of_multiprocessor(row))),
        str(row["instructions"]),
        f"{row['copies']} ({row['boxes']})",
    ]
    if "loop" not in row:
        return [*cells, "", ""]
    taken = clocks(row)
    told = ", ".join(f"{name} {value:.0f}" for name, value in taken.items())
    return [*cells, told, max(taken, key=lambda name: taken[name])]


_INTRODUCTION = """\
# The kernels for Hopper, compiled for an H100 that was not there

    {command}

Compiled on {date} with jax {jax} and ptxas {ptxas}, on a machine without a GPU: **nothing here was
run, and no time was measured.** bfloat16; the problems are those of [aot.md](aot.md).

With 4 warps, one warpgroup multiplies and copies for itself; with 8, another copies; with 12, two
multiply and another copies. Registers of a thread as ptxas gives them, and bytes that spill; with
12 warps the kernel then gives threads that multiply 232 of the registers, and those that copy 40.
*Blocks* are those that a multiprocessor has room for at once, by its registers and its shared
memory. Copies are the instructions that copy a line or, in brackets, a box of tokens. *Clocks of a
chunk* are those that the loop over chunks takes of a quarter of a multiprocessor, for one warpgroup
and one chunk: instructions at one a clock, exponentials at 4 lanes a clock, multiply-adds of matrix
products at 512. The largest limits a kernel that waits for nothing else; memory is not among them.
Where a warpgroup copies for itself, its loop has the instructions that copy the next chunk, which
all of its warps go through though one thread copies; where another copies, it has as many, which
are not counted here.

The first problem, forward and backward, is compiled for eight H100 as well, with batch and heads
split {split}. All that they exchange is the sum of the bias' gradient, by the blocks of its table:
{exchanged}.
"""


def main() -> int:
    """Parse the command line, compile, and say what failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.in_mosaic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare some with the table")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts of names")
    parser.add_argument("--save", action="store_true", help="with --only: into the table")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = problems(options.check)
    chosen = [p for p in chosen if all(part in p.name for part in options.only)]
    rows: dict[str, Any] = {}
    reasons: dict[str, str | None] = {}
    answers = pool.run(compile_problem, chosen, options.workers)
    for problem, answer in zip(chosen, answers, strict=True):
        kernels = kernels_of(problem)
        found = dict.fromkeys(kernels, answer) if "error" in answer else answer
        for kernel in kernels:
            key = f"{problem.name}/{kernel}"
            rows[key] = found[kernel]
            print(key, found[kernel], flush=True)
            if "error" not in found[kernel] and too_few(problem, found[kernel]):
                reasons[key] = "has room for one multiplying warpgroup on a multiprocessor"
    devices = None
    if not options.only:
        (devices,) = pool.run(compile_for_devices, problems(quick=True)[:1], 1)
        print(_MACHINE, devices, flush=True)
        reasons[_MACHINE] = wrongly_exchanged(devices)
    if options.save or not (options.only or options.check):
        save(rows, devices)
    reasons |= failed(rows, read() if options.check else {})
    failures = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return len(failures) > 0


def save(rows: Mapping[str, Any], devices: Mapping[str, Any] | None) -> None:
    """Put rows into the table, in the order of all problems; those that are no more go."""
    known, devices = read() | dict(rows), devices or read_devices()
    keys = [f"{p.name}/{kernel}" for p in problems(quick=False) for kernel in kernels_of(p)]
    kept = {key: known[key] for key in keys if key in known}
    where = aot.environment() | {"command": "python -m benchmarks.aot.in_mosaic"}
    lines = ",\n".join(f'  "{key}": {json.dumps(row)}' for key, row in kept.items())
    head = f'"environment": {json.dumps(where)},\n "devices": {json.dumps(devices)}'
    TABLE.write_text(f'{{{head},\n "rows": {{\n{lines}\n}}}}\n')
    DOCUMENT.write_text(document(kept, devices, where))


def read_devices() -> dict[str, Any]:
    """What devices exchange, as committed."""
    return json.loads(TABLE.read_text()).get("devices", {}) if TABLE.exists() else {}


def read() -> dict[str, Any]:
    """The committed rows, by problem and kernel."""
    return json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
