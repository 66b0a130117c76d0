"""Compiling a kernel in Triton's language for one chip, and reading what became of it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.aot import sass
from benchmarks.aot.cases import Case
from benchmarks.aot.chips import CHIPS
from benchmarks.aot.compiler import assemble, extract
from benchmarks.aot.in_triton import counts
from benchmarks.aot.in_triton.cases import TARGETS


def compile_case(case: Case) -> dict[str, Any]:
    """What a kernel takes of a chip, and what it issues, loads and multiplies."""
    equation, operands = extract(case, CHIPS["h100"], "jax_triton")
    statics = equation.params["metaparams"]["s"]
    options = equation.params["backend_options"]
    row, text = _assembled(equation, operands, statics, case.chip)
    if row["shared"] > (most := TARGETS[case.chip][2]):
        return row | {"error": f"needs {row['shared']} bytes of shared memory; {most} are there"}
    row |= {
        "tile": counts.sides(statics, "tile"),
        "chunk": counts.sides(statics, "chunk"),
        "warps": options["num_warps"],
        "stages": options["num_stages"],
        "instructions": sass.length(text),
    }
    if case.kernel == "forward" and statics.looks_for_nan:
        # What is done only where a key is nan is not part of what is counted.
        usual = dataclasses.replace(statics, looks_for_nan=False)
        _, text = _assembled(equation, operands, usual, case.chip)
    variables = [*equation.invars, *equation.outvars]
    moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)
    work = counts.work_of(case, statics) | {"bytes": moved}
    return row | work | counts.counts_of(case, statics, work, options["num_warps"], text)


def _assembled(
    equation: Any, operands: Sequence[Any], statics: Any, chip: str
) -> tuple[dict[str, int], str]:
    """Registers, spills and shared memory of a kernel with these constants, and machine code."""
    from jax_triton import triton_lib

    capability, arch, _ = TARGETS[chip]
    constants = equation.params["metaparams"]
    metaparams = type(constants)(dict(constants) | {"s": statics})
    params = equation.params | {"compute_capability": capability, "metaparams": metaparams}
    with tempfile.TemporaryDirectory() as folder:
        triton_lib._JAX_TRITON_DUMP_DIR = folder
        run = jax.jit(lambda *xs: equation.primitive.bind(*xs, **params))
        run.trace(*operands).lower(lowering_platforms=("cuda",))
        (ptx,) = pathlib.Path(folder).glob("*/*.ptx")
        (info,) = pathlib.Path(folder).glob("*/*.compile_info")
        registers, spilled, text = assemble(str(ptx), arch)
        shared = int(info.read_text().split()[-1])
    return {"registers": registers, "spill": spilled, "shared": shared}, text
