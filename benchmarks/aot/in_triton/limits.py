"""What limits a kernel on a chip, from what it issues, loads and multiplies: floors, not times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.aot.chips import Chip
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.blocks import axis_blocks
from natjax.kernels.plan.reach import axis_reach
from natjax.kernels.spec import Kernel, rows_of

# What a kernel loads for each row and each column of its blocks: rows of the heads' size, or
# numbers of four bytes. Written are: by each, as many rows as it has results.
_ROWS: dict[Kernel, tuple[int, int]] = {
    "forward": (1, 0),
    "dquery": (3, 2),
    "dkeyvalue": (2, 0),
    "dbias": (0, 0),
    "qk": (1, 0),
    "av": (0, 0),
    "av_transposed": (0, 0),
}
_COLUMNS: dict[Kernel, tuple[int, int]] = {
    "forward": (2, 0),
    "dquery": (2, 0),
    "dkeyvalue": (2, 2),
    "dbias": (2, 0),
    "qk": (1, 0),
    "av": (1, 0),
    "av_transposed": (1, 0),
}


def loaded(
    kernel: Kernel,
    *,
    tiles: int,
    blocks: float,
    rows: int,
    columns: int,
    row_bytes: int,
    table_bytes: int,
) -> float:
    """Bytes that the programs of a kernel load in all, of which caches spare the memory most.

    Args:
      kernel: which kernel.
      tiles: how many tiles are loaded, those of all images and heads.
      blocks: how many blocks are computed.
      rows: of a block.
      columns: of a block.
      row_bytes: of a token's query, key or value of a head.
      table_bytes: of an entry of what is added to the logits, 0 where that stays in registers, in
        the L1 cache, or is not there.
    """
    (wide, narrow), (wide_columns, narrow_columns) = _ROWS[kernel], _COLUMNS[kernel]
    if kernel == "dbias":  # whose programs have one chunk, and load the rows for each block
        wide_columns, narrow_columns = 0, 0
        of_block = (2 * rows + 2 * columns) * row_bytes + 8 * rows
    else:
        of_block = columns * (wide_columns * row_bytes + 4 * narrow_columns)
    of_tile = rows * (wide * row_bytes + 4 * narrow)
    return tiles * of_tile + blocks * (of_block + rows * columns * table_bytes)


def floors(row: Mapping[str, Any], chip: Chip) -> dict[str, float]:
    """Seconds that a call takes at least, by what takes them."""
    warps = row["programs"] * row["warps"]
    return {
        "issue": warps * row["issued"] / chip.issue_rate,
        "exp": warps * 32 * row["exponentials_issued"] / chip.exponential_rate,
        "L2": row["loaded"] / chip.l2_bandwidth,
        "memory": row["bytes"] / chip.bandwidth,
    }


def least_computed(kernel: Kernel, neighborhood: Neighborhood, rows: int) -> float:
    """How many times the useful pairs a kernel computes at least, with tiles of so many rows.

    That is of tiles whose sides are powers of two, if their chunks fit what they meet to the token.
    """
    axes, exponent = neighborhood.axes, rows.bit_length() - 1
    useful = neighborhood.num_tokens * neighborhood.num_neighbors
    found = []
    for exponents in itertools.product(range(exponent + 1), repeat=len(axes)):
        if sum(exponents) == exponent:
            along = (
                axis_blocks(axis, rows_of(kernel), 1 << side, 1)
                for axis, side in zip(axes, exponents, strict=True)
            )
            found.append(math.prod(int(axis_reach(x)[:, 1].sum()) for x in along))
    return rows * min(found) / useful


def limiter(found: Mapping[str, float]) -> str:
    """Which floor is the highest."""
    return max(found, key=found.__getitem__)


def total(rows: Iterable[Mapping[str, Any]], chip: Chip) -> dict[str, float]:
    """The floors of kernels that run one after the other."""
    each = [floors(row, chip) for row in rows]
    return {name: sum(found[name] for found in each) for name in each[0]}
