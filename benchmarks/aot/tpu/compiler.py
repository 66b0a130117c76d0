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
from benchmarks.aot.tpu import bundles
from benchmarks.aot.tpu.cases import CHIPS, TPUCase
from natjax.kernels.backends.mosaic_tpu.layout import Layout as Tiles
from natjax.kernels.backends.mosaic_tpu.memory import steps_of


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
            "moved": layouts.moves(program.as_text(), size) if case.op == "attention" else [],
            "bytes": usage.argument_size_in_bytes + usage.output_size_in_bytes,
        }
        return row | _figures(case, pathlib.Path(folder))


@contextlib.contextmanager
def target(chip: str) -> Iterator[SingleDeviceSharding]:
    """Within the context, programs are for a chip; gives where arrays are on it."""
    os.environ.update(NO_TPU)
    description = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    devices = description.devices[:1]
    with use_abstract_mesh(Mesh(np.array(devices), ("x",)).abstract_mesh):
        yield SingleDeviceSharding(devices[0])


def compile_program(case: TPUCase) -> Any:
    """The compiled program of a case, whose arguments and results are laid out row-major."""
    with target(case.chip) as sharding:
        arrays = case.arrays(sharding)
        results = jax.eval_shape(case.function, *arrays)
        run = jax.jit(
            case.function,
            in_shardings=tuple(_row_major(x, sharding) for x in arrays),
            out_shardings=jax.tree.map(lambda x: _row_major(x, sharding), results),
        )
        return run.lower(*arrays).compile()


def _row_major(x: jax.ShapeDtypeStruct, sharding: SingleDeviceSharding) -> Format:
    """For arguments and results of a program XLA may choose other layouts than inside of one."""
    return Format(Layout(tuple(range(x.ndim))), sharding)


def _maps(case: TPUCase) -> float:
    """Images times blocks of 128 channels."""
    problem = case.problem
    return problem.batch * problem.heads * problem.head_dim / 128


def _figures(case: TPUCase, folder: pathlib.Path) -> dict[str, Any]:
    problem = case.problem
    layout = Tiles.of(problem.neighborhood, problem.heads, problem.head_dim)
    steps = steps_of(layout, problem.batch, case.arrays(None)[0].dtype.itemsize)
    found = bundles.read(folder, case.kernel)
    # The grid; maps, some at a time; and the tiles of a map. A loop of one turn is none.
    tiles = layout.tiles_of_group // steps.tiles if steps.maps == 1 else 1
    inner = [n for n in (steps.images * layout.groups // steps.maps, tiles) if n > 1]
    deepest = len(found.count) - 1
    unit, fewest = found.busiest(deepest)
    blocks = -(-problem.heads // layout.heads)
    programs = problem.batch // steps.images * blocks
    side_by_side = steps.tiles if tiles > 1 else steps.maps * layout.tiles_of_group
    return {
        "tile": [axis.tile for axis in layout.blocks.axes],
        "side_by_side": side_by_side,
        "bundles": round(found.total([1, 1, *inner]) * programs / _maps(case)),
        "inner": round(found.count[deepest] / side_by_side),
        "busiest": unit,
        "fewest": round(fewest / side_by_side),
        "spills": found.slots[deepest]["VSTORE:SPILL"],
    }
