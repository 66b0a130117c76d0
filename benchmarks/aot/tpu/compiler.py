"""Compiling one case for a TPU that is not here, and reading what became of it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, SingleDeviceSharding, use_abstract_mesh

from benchmarks.aot import layouts
from benchmarks.aot.step.compiler import NO_TPU
from benchmarks.aot.tpu import figures
from benchmarks.aot.tpu.cases import CHIPS, TPUCase


def compile_case(case: TPUCase) -> dict[str, Any]:
    """Compile a case: a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        # Read when libtpu is loaded, so each case needs a process of its own.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder}"
        program = compile_program(case)
        usage = program.memory_analysis()
        size = int(np.prod(case.arrays(None)[0].shape))
        row = {
            "temporaries": usage.temp_size_in_bytes,
            "moved": _moved(case, layouts.moves(program.as_text(), size)),
            "bytes": usage.argument_size_in_bytes + usage.output_size_in_bytes,
        }
        return row | figures.of(case, pathlib.Path(folder))


def only_compile(case: TPUCase) -> dict[str, Any]:
    """Compile a case of which nothing is counted."""
    compile_program(case)
    return {}


def _moved(case: TPUCase, found: list[str]) -> list[str]:
    """Keys of large windows may be padded, so that slabs begin at multiples of 8."""
    return [x for x in found if not (case.is_large and " pad(" in x)]


@contextlib.contextmanager
def target(chip: str) -> Iterator[SingleDeviceSharding]:
    """Within the context, programs are for a chip; gives where arrays are on it."""
    os.environ.update(NO_TPU)
    description = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    devices = description.devices[:1]
    with use_abstract_mesh(Mesh(np.array(devices), ("x",)).abstract_mesh):
        yield SingleDeviceSharding(devices[0])


def compile_program(case: TPUCase) -> Any:
    """The compiled program of a case, whose arguments and results are laid out as it says."""
    with target(case.chip) as sharding:
        arrays = case.arrays(sharding)
        results = jax.eval_shape(case.function, *arrays)

        def place(x: jax.ShapeDtypeStruct) -> Format:
            """For the edge of a program XLA may choose other layouts than inside of one."""
            return Format(Layout(case.order(x)), sharding)

        run = jax.jit(
            case.function,
            in_shardings=tuple(map(place, arrays)),
            out_shardings=jax.tree.map(place, results),
        )
        return run.lower(*arrays).compile()
