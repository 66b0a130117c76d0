"""Compiling the kernels of a problem, and reading what became of them.

Whole ops are compiled, forward and backward, and Mosaic writes down each kernel on the way; ptxas
and nvdisasm say what becomes of it.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from benchmarks.aot import cases, compiler, sass
from benchmarks.aot.chips import CHIPS
from benchmarks.aot.in_mosaic import counts
from benchmarks.aot.in_mosaic.cases import CHIP, kernels_of
from benchmarks.aot.step.cases import MACHINES
from benchmarks.aot.step.collectives import collectives
from benchmarks.aot.step.compiler import topology_of
from natjax.kernels.backends import mosaic_gpu
from natjax.kernels.spec import CallSpec, Kernel
from natjax.kernels.tuning import settings
from natjax.kernels.tuning.problems import Problem

# One op on several devices, over which batch and heads are split.
MACHINE, SPLIT = "8xH100", (4, 2)


def compile_problem(problem: Problem) -> dict[str, Any]:
    """What each kernel of a problem takes, and does in its loop over chunks."""
    kernels, rows = kernels_of(problem), {}
    # A program that has all of them: the gradients of the one op, and of the others.
    for kernel, own in (("dquery", cases.FUSED), ("qk", cases.UNFUSED)):
        own = [x for x in own if x in kernels]
        if not own:
            continue
        case = cases.Case(problem=problem, dtype="bfloat16", kernel=kernel, chip=CHIP)
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
    chip = CHIPS[CHIP]
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
        "copies": len(re.findall(r"cp\.async\.bulk\.tensor", code)),
    }
    work = counts.work_of(kernel, problem, config)
    return row | work | counts.counts_of(kernel, problem, config, work, text)


def compile_for_devices(problem: Problem) -> dict[str, Any]:
    """What devices exchange that have parts of batch and heads, forward and backward."""
    devices = np.asarray(topology_of(MACHINES[MACHINE]).devices)
    mesh = Mesh(devices.reshape(SPLIT), ("batch", "heads"))
    tokens = P("batch", *[None] * problem.ndim, "heads")
    shardings = {
        name: NamedSharding(mesh, P("heads") if name == "rpb" else tokens)
        for name in problem.structs()
    }
    case = cases.Case(problem=problem, dtype="bfloat16", kernel="dquery", chip=CHIP)
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
