"""Compiling one kernel for one chip, and reading what became of it."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import math
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import Mesh, SingleDeviceSharding, use_abstract_mesh

from benchmarks.aot import sass, traffic
from benchmarks.aot.cases import Case, function_of
from benchmarks.aot.chips import CHIPS, Chip
from natjax.kernels import checks
from natjax.kernels.backends import pallas_triton
from natjax.kernels.backends.pallas_triton.program import by_thirds
from natjax.kernels.backends.triton_common.config import KernelConfig, padded_head_dim
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning import settings
from natjax.kernels.tuning.problems import Problem

_SPILLS_ARE_ERRORS = "xla_gpu_fail_ptx_compilation_on_register_spilling"
# And no more: dumps of Triton's passes take longer than the compilation.
_DUMPED = "ptx"
_TENSOR_CORES = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"(?<!w)mma\.sync",
}


def compile_case(case: Case) -> dict[str, Any]:
    """Compile a case; what its kernel takes, or under "error" why there is none."""
    chip = CHIPS[case.chip]
    kernel, operands = extract(case, chip)
    problem = case.problem
    spec = CallSpec(
        problem.neighborhood,
        problem.head_dim,
        problem.value_dim or problem.head_dim,
        case.dtype,
        problem.rpb and case.kernel not in ("av", "av_transposed"),
        checks.float32_products(),
    )
    config = settings.resolve(pallas_triton, case.kernel, spec, chip.name)[0]
    row: dict[str, Any] = {
        "tile": config.tile,
        "chunk": config.chunk,
        "warps": config.num_warps,
        "stages": config.num_stages,
    }
    row |= traffic.of(case.kernel, problem, config, [*kernel.invars, *kernel.outvars])
    try:
        figures, text = _compile(kernel, operands, chip, {_SPILLS_ARE_ERRORS: True})
    except jax.errors.JaxRuntimeError as error:
        if "spill" not in str(error):
            return row | {"error": str(error).splitlines()[0][:200]}
        # Once more, for the figures.
        figures, text = _compile(kernel, operands, chip, {})
    return row | figures | _done_in_loop(case, spec, config, "tcgen05" in figures["matrix"], text)


def _done_in_loop(
    case: Case, spec: CallSpec, config: KernelConfig, is_tcgen05: bool, text: str
) -> dict[str, Any]:
    """Exponentials and products of a kernel's main loop, each with what its blocks need."""
    if (loop := sass.main_loop(text)) is None:
        return {}  # one that ptxas has unrolled
    exponentials, products = sass.needed(
        case.kernel,
        math.prod(config.tile),
        math.prod(config.chunk),
        padded_head_dim(case.problem.head_dim),
        config.num_warps,
        times=3 if by_thirds(spec) else 1,
        is_tcgen05=is_tcgen05,
    )
    return {
        "loop": loop.instructions,
        "exponentials": [loop.exponentials, exponentials],
        "products": [loop.products, products],
    }


def hlo_of(case: Case) -> str:
    """The program that XLA makes of the whole op of a case."""
    return compile_op(case).as_text()


def compile_op(case: Case, implementation: str = "pallas_triton") -> Any:
    """The whole op of a case, compiled."""
    chip = CHIPS[case.chip]
    with _target(chip) as sharding:
        arrays = _arrays(case.problem, case.dtype, sharding)
        return jax.jit(function_of(case, implementation)).lower(arrays).compile()


@contextlib.contextmanager
def _target(chip: Chip) -> Iterator[SingleDeviceSharding]:
    devices = chip.topology().devices
    with use_abstract_mesh(Mesh(np.array(devices[:1]), ("x",)).abstract_mesh):
        yield SingleDeviceSharding(devices[0])


def _arrays(problem: Problem, dtype: str, sharding: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in problem.structs(dtype).items()
    }


def extract(
    case: Case, chip: Chip, implementation: str = "pallas_triton"
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The call of the case's kernel in the program that JAX traces, and its operands."""
    with _target(chip) as sharding:
        arrays = _arrays(case.problem, case.dtype, sharding)
        program = jax.make_jaxpr(function_of(case, implementation))(arrays)
    name = f"natjax_{case.kernel}"
    calls = [call for call in _kernel_calls(program.jaxpr) if call.params["name"] == name]
    if not calls:
        raise LookupError(f"{case.key}: the program has no kernel named {name}")
    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in calls[0].invars]
    return calls[0], operands


def _kernel_calls(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("pallas_call", "triton_kernel_call"):
            yield equation
            continue
        for value in equation.params.values():
            for inner in _jaxprs(value):
                yield from _kernel_calls(inner)


def _jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _jaxprs(inner)


def _compile(
    kernel: Any, operands: list[jax.ShapeDtypeStruct], chip: Chip, options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    with tempfile.TemporaryDirectory() as folder, _target(chip) as sharding:
        specs = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in operands]
        run = jax.jit(lambda *xs: kernel.primitive.bind(*xs, **kernel.params))
        dump = {"xla_dump_to": folder, "xla_dump_emitter_re": _DUMPED}
        run.lower(*specs).compile(compiler_options=dump | options)
        return _figures(folder, chip)


def _figures(folder: str, chip: Chip) -> tuple[dict[str, Any], str]:
    """Registers, spills, shared memory and instructions of the one kernel dumped in a folder.

    And its machine code.
    """
    (ptx,) = (path for path in glob.glob(f"{folder}/*.ptx") if os.path.getsize(path))
    (thunks,) = pathlib.Path(folder).glob("*thunk_sequence.txt")
    (shared,) = re.findall(r"shared_memory: (\d+) bytes", thunks.read_text())
    registers, spilled, machine_code = assemble(ptx, chip.arch)
    text = pathlib.Path(ptx).read_text()
    matrix = {name: len(re.findall(pattern, text)) for name, pattern in _TENSOR_CORES.items()}
    figures = {
        "registers": registers,
        "spill": spilled,
        "shared": int(shared),
        "instructions": sass.length(machine_code),
        "matrix": {name: count for name, count in matrix.items() if count},
        "cp_async": len(re.findall(r"cp\.async\.c[ag]", text)),
    }
    return figures, machine_code


def assemble(ptx: str, arch: str) -> tuple[int, int, str]:
    """Registers of a thread, bytes of them that are spilled, and the machine code."""
    said = run_tool("ptxas", "-v", f"-arch={arch}", ptx, "-o", f"{ptx}.cubin").stderr
    registers, spilled = (
        sum(map(int, re.findall(pattern, said)))
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    return registers, spilled, run_tool("nvdisasm", "-c", f"{ptx}.cubin").stdout


def run_tool(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of NVIDIA's command line tools."""
    package = importlib.util.find_spec("nvidia")  # of the environment that compiles alone
    (folder, *_) = package.submodule_search_locations if package else [""]
    path = pathlib.Path(folder or "", "cu13", "bin", tool)
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True)
