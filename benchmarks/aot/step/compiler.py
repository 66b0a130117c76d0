"""Compiling one training step for a machine that is not here, and what it takes."""

from __future__ import annotations

import datetime
import os
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, use_abstract_mesh

from benchmarks.aot.chips import CHIPS
from benchmarks.aot.step import collectives
from benchmarks.aot.step.cases import MACHINES, Machine, StepCase, config_of, setup_of
from benchmarks.aot.step.tasks import TASKS
from natjax.train.engine.compile import compile_training
from natjax.train.engine.sharding import device_grid, mesh_of

# Without them libtpu looks for a TPU, and complains.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several at once are no trouble where there is no TPU to share.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


# Kernels of ours in a compiled program: "pallas_triton" has them by name, "jax_triton" does not.
_KERNEL = re.compile(r"natjax_\w+|%triton_kernel_call[\w.]* =")


def compile_step(case: StepCase) -> dict[str, Any]:
    """Compile a case; a row of the table, or under "error" why there is none."""
    mesh = _mesh(case)
    began, day = time.process_time(), datetime.date.today().isoformat()
    # Lowering asks for the device, of which there is none.
    with use_abstract_mesh(mesh.abstract_mesh):
        compiled = compile_training(setup_of(case), mesh)
        rows = TASKS[case.task].rows(case.size)
        batch = {
            name: jax.ShapeDtypeStruct((case.batch, *shape), dtype, sharding=compiled.batch)
            for name, (shape, dtype) in rows.items()
        }
        lowered = compiled.train.lower(compiled.target, batch)
        try:
            program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            seconds = round(time.process_time() - began)
            return _too_large(str(error)) | {"day": day, "seconds": seconds}
    parameters = compiled.target.params
    row: dict[str, Any] = {
        "day": day,
        "seconds": round(time.process_time() - began),
        "parameters": sum(leaf.size for leaf in parameters.values()),
    }
    row |= _memory(program, MACHINES[case.machine])
    text = program.as_text()
    found = collectives.collectives(text)
    row["collectives"] = collectives.totals(found)
    shapes = [leaf.shape for leaf in parameters.values()]
    moved = collectives.unexpected(found, shapes, rows["image"][0], case.fsdp)
    row["moved"] = [f"{x.kind} of {x.shapes}" for x in moved]
    row["rounded"] = [f"{x.kind} of {x.shapes}" for x in collectives.rounded(found)]
    row["kernels"] = len(set(_KERNEL.findall(text)))
    costs = program.cost_analysis()
    if costs and costs.get("flops", -1) > 0:
        row["flops"] = costs["flops"]
    return row


def _mesh(case: StepCase) -> Mesh:
    machine = MACHINES[case.machine]
    return mesh_of(device_grid(config_of(case).mesh, topology_of(machine).devices))


def topology_of(machine: Machine) -> topologies.TopologyDescription:
    """The devices of a machine, as its compiler knows them."""
    if machine.chip in CHIPS:
        chip = CHIPS[machine.chip]
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip.arch,
            target_config=chip.description,
            topology=machine.topology,
        )
    os.environ.update(NO_TPU)
    return topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)


def _memory(program: Any, machine: Machine) -> dict[str, Any]:
    usage = program.memory_analysis()
    # The state is changed in place, so results take nothing of their own.
    peak = max(usage.peak_memory_in_bytes, usage.argument_size_in_bytes + usage.temp_size_in_bytes)
    return {
        "arguments": usage.argument_size_in_bytes,
        "temporaries": usage.temp_size_in_bytes,
        "aliased": usage.alias_size_in_bytes,
        "peak": peak,
        "fits": peak <= machine.memory,
    }


def _too_large(message: str) -> dict[str, Any]:
    """A row for a program that the compiler refuses for its size; any other refusal is an error."""
    if found := re.search(r"(?:Used |temporaries \()([\d.]+)([MG])\b.* hbm", message, re.I):
        used, unit = float(found.group(1)), found.group(2)
        return {"peak": int(used * (2**30 if unit == "G" else 2**20)), "fits": False}
    return {"error": " ".join(message.split())[:300]}


def environment() -> dict[str, str]:
    """Where the numbers come from."""
    return {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "command": "make aot-step",
    }
