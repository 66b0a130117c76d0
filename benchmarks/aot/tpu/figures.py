"""What a kernel's code and its plan say of the work that it is, for an image and 128 channels."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from benchmarks.aot.tpu import bundles
from benchmarks.aot.tpu.bundles import Bundles
from benchmarks.aot.tpu.cases import TPUCase
from natjax.kernels.backends.mosaic_tpu.large.choice import walks_of
from natjax.kernels.backends.mosaic_tpu.large.walk import IS_FIRST, IS_LAST, IS_MASKED, Walk
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import steps_of

# Published peak of bfloat16 in TFLOP/s, and GB/s of memory, of one core.
_PEAKS = {
    "v5e": (197, 819),
    "v5p": (459 / 2, 2765 / 2),
    "v6e": (918, 1640),
    "tpu7x": (2307 / 2, 7380 / 2),
}
# Multiplications that a core starts in a cycle: four units of 128 by 128, or of 256 by 256.
_PRODUCTS = {"v5e": 4 * 128**2, "v5p": 4 * 128**2, "v6e": 4 * 256**2, "tpu7x": 4 * 256**2}
# The share of units of 256 by 256 that products with 128 channels use.
_SHARE = {"v5e": 1, "v5p": 1, "v6e": 1 / 2, "tpu7x": 1 / 2}
# Products of a tile and a chunk in each kernel for large windows.
_FACTORS = {"forward": 2, "dquery": 3, "dkeyvalue": 4}


def of(case: TPUCase, folder: pathlib.Path) -> dict[str, Any]:
    """The figures of a case whose kernel was dumped in a folder."""
    if case.is_large:
        row = _large(case, bundles.read(folder, case.kernel, _shares(case)))
    else:
        row = _small(case, bundles.read(folder, case.kernel, _shares_of_small(case)))
    return row | {"vmem": bundles.vmem(folder, case.kernel)}


def cycles_of(size: float, chip: str) -> int:
    """Cycles in which so many bytes can go from or to the memory of the device."""
    flops, bandwidth = _PEAKS[chip]
    clock = flops * 1e12 / (2 * _PRODUCTS[chip])
    return round(size / (bandwidth * 1e9 / clock))


def _small(case: TPUCase, found: Bundles) -> dict[str, Any]:
    problem = case.problem
    layout = Layout.of(problem.neighborhood, problem.heads, problem.head_dim)
    slots = 0 if case.op == "attention" else problem.neighborhood.num_neighbors
    itemsize = case.arrays(None)[0].dtype.itemsize
    is_backward = case.op == "attention" and case.what == "backward"
    steps = steps_of(layout, problem.batch, itemsize, slots, is_backward=is_backward)
    # The grid; maps, some at a time; and the tiles of a map. A loop of one turn is none.
    tiles = layout.tiles_of_group // steps.tiles if steps.maps == 1 else 1
    inner = [n for n in (steps.images * layout.groups // steps.maps, tiles) if n > 1]
    deepest = len(found.count) - 1
    unit, fewest = found.busiest(deepest)
    programs = problem.batch // steps.images * -(-problem.heads // layout.heads)
    side_by_side = steps.tiles if tiles > 1 else steps.maps * layout.tiles_of_group
    return {
        "tile": [axis.tile for axis in layout.blocks.axes],
        "side_by_side": side_by_side,
        "bundles": round(found.total([1, 1, *inner]) * programs / case.maps),
        "inner": round(found.count[deepest] / side_by_side),
        "busiest": unit,
        "fewest": round(fewest / side_by_side),
        "spills": round(found.slots[deepest]["VSTORE:SPILL"]),
    }


def _shares_of_small(case: TPUCase) -> tuple[float, ...]:
    """The fused kernels go over their tiles once more only where logits are far from common.

    The gradient of biases is set to zero in the first program, which is counted for all.
    """
    if case.op != "attention":
        return ()
    return (1, 0) if case.what == "backward" and case.problem.rpb else (0,)


def walk_of(case: TPUCase) -> Walk:
    """How a kernel for large windows goes over its tokens."""
    walks = walks_of(case.spec, case.problem.heads)
    return walks.keys if case.what == "dkeyvalue" else walks.queries


def _shares(case: TPUCase) -> tuple[float, ...]:
    """Which part of the steps is the first of its tile, has a mask, has none, and is the last.

    There is one kind of steps only where all have a mask, or none has. The gradient of biases is
    set to zero in the very first step.
    """
    walk = walk_of(case)
    flags = walk.steps().reshape(-1, walk.num_fields)[:, 1]
    first, masked, last = (float(np.mean(flags & x > 0)) for x in (IS_FIRST, IS_MASKED, IS_LAST))
    sums_biases = walk.has_bias and case.what == "dquery"
    return (
        *([1 / walk.num_steps] if sums_biases else []),
        first,
        *([] if masked in (0, 1) else [masked, 1 - masked]),
        last,
    )


def _large(case: TPUCase, found: Bundles) -> dict[str, Any]:
    """The figures of a kernel for large windows."""
    walk = walk_of(case)
    turns = [1, walk.num_steps, walk.heads]
    unit, fewest = found.busiest(len(found.count) - 1)
    products = _FACTORS[case.what] * walk.heads * 128
    rate = _PRODUCTS[case.chip] * _SHARE[case.chip]
    logits = walk.num_steps * walk.num_rows * walk.num_columns
    seen = case.problem.neighborhood.num_tokens * case.problem.neighborhood.num_neighbors
    return {
        "tile": list(walk.tile),
        "chunk": list(walk.chunk),
        "steps": walk.num_steps,
        "bundles": round(found.total(turns)),
        "ideal": round(products * logits / rate),
        "ideal_of_windows": round(products * seen / rate),
        "busiest": unit,
        "fewest": fewest * math.prod(turns[: len(found.count)]),
        "spills": round(found.slots[-1]["VSTORE:SPILL"]),
        "fetched": fetched(walk, case.what),
    }


def fetched(walk: Walk, what: str, itemsize: int = 2) -> int:
    """Bytes that go from and to the memory of the device, for an image and a block of lanes.

    A block that a step shares with the one before is not fetched again.
    """
    n, steps = len(walk.axes), walk.steps().reshape(-1, walk.num_fields)
    masks = np.split(steps[:, 3 + 2 * n : 3 + 3 * n], n, axis=1)
    tiles = walk.num_tiles * walk.num_rows
    chunks = len(steps) * walk.num_columns
    # Queries and outputs, keys and values, their gradients, and statistics of queries.
    maps = {
        "forward": 2 * tiles + 2 * chunks,
        "dquery": 3 * tiles + 2 * chunks,
        "dkeyvalue": 4 * tiles + 2 * chunks,
    }
    lanes = maps[what] * walk.lanes
    lanes += {"forward": 0, "dquery": tiles, "dkeyvalue": chunks}[what] * 128
    size = itemsize * lanes + (4 * walk.heads * tiles if what == "forward" else 0)
    if walk.biases is not None:
        table = walk.biases.size(walk.heads) if what == "dquery" else 0
        size += 4 * (chunks // walk.num_columns * walk.biases.block_size(walk.heads) + table)
    changes = [1 + int(np.count_nonzero(np.diff(kind[:, 0]))) for kind in masks]
    sides = (side * walk.num_columns * 4 for side in walk.tile)
    return size + sum(a * b for a, b in zip(changes, sides, strict=True))
