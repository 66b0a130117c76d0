"""Shared memory and barriers of each kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.program import Program, Ref, Tokens
from natjax.kernels.spec import Kernel

type Scratch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Shared memory and barriers of a kernel; None for what it has not.

    Attributes:
      rows: of each operand or result, those of all warpgroups.
      columns: of each operand whose chunks go by, for each place of the ring.
      full: barriers that these have arrived, of each or of all together.
      free: barriers that all who multiply are done with them.
      arrived: barriers that the rows of a warpgroup have arrived.
      scalars: numbers that come with columns.
      stored: blocks of the table, and a barrier that they have arrived.
      turns: a barrier by which warpgroups take turns.
      left: weights, where the kernel is interpreted.
    """

    rows: list[Tokens]
    columns: list[Tokens]
    full: list[Ref]
    free: list[Ref]
    arrived: Ref = None
    scalars: list[Ref] | None = None
    stored: tuple[Ref, Ref] | None = None
    turns: Ref = None
    left: Ref = None

    @classmethod
    def of(cls, program: Program, *, rows: list[Any], columns: list[Any], **scratch: Any) -> Memory:
        """What a kernel is given for `memory_of`."""
        return cls(
            [program.tokens(x, program.fetched_lines) for x in rows],
            [program.tokens(x, program.column_lines) for x in columns],
            **scratch,
        )


def memory_of(kernel: Kernel, program: Program) -> Scratch:
    """What `Memory` is made of for a kernel, by name."""
    return _MEMORY[kernel](program)


def bytes_of(memory: Scratch) -> int:
    """Bytes of shared memory, without the few of barriers and of what Mosaic itself needs."""
    # A barrier has no shape; what it takes is 8 bytes.
    arrays = [x for x in jax.tree.leaves(memory) if hasattr(x, "shape")]
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)


def _forward(program: Program) -> Scratch:
    memory = _rows(program, 1) | _columns(program, 0, 0) | _table(program) | _weights(program)
    if program.config.warpgroups == 2:
        memory["turns"] = plgpu.Barrier(num_arrivals=2)
    return memory


def _dquery(program: Program) -> Scratch:
    return _rows(program, 2) | _columns(program, 0, 0) | _table(program) | _weights(program)


def _dkeyvalue(program: Program) -> Scratch:
    scalars = {"scalars": [program.scalars_memory(jnp.float32) for _ in range(2)]}
    columns = _columns(program, 1, 1)
    return _rows(program, 2) | columns | scalars | _weights(program)


def _dbias(program: Program) -> Scratch:
    """Rows go through the ring as well, and arrive with the columns."""
    config = program.config
    of_rows = config.warpgroups * program.row_copies
    rows = config.num_stages * config.warpgroups
    return {
        "rows": [program.rows_memory(rows) for _ in range(2)],
        "columns": [program.columns_memory() for _ in range(2)],
        "full": [_barriers(program, 2 * (of_rows + program.column_copies))],
        "free": [_freed(program)],
    }


def _qk(program: Program) -> Scratch:
    return _rows(program, 1) | _columns(program, 0)


def _av(program: Program) -> Scratch:
    return _results(program) | _columns(program, 0) | _weights(program)


def _av_transposed(program: Program) -> Scratch:
    columns = _columns(program, 1)
    scalars = {"scalars": [program.scalars_memory(jnp.int32)]}
    return _results(program) | columns | scalars | _weights(program)


_MEMORY: dict[Kernel, Callable[[Program], Scratch]] = {
    "forward": _forward,
    "dquery": _dquery,
    "dkeyvalue": _dkeyvalue,
    "dbias": _dbias,
    "qk": _qk,
    "av": _av,
    "av_transposed": _av_transposed,
}


def _rows(program: Program, operands: int) -> Scratch:
    """Of a tile's rows, which are fetched and stay."""
    config = program.config
    arrivals = operands * program.row_copies
    return {
        "rows": [program.rows_memory(config.warpgroups) for _ in range(operands)],
        "arrived": plgpu.Barrier(num_barriers=config.warpgroups, num_arrivals=arrivals),
    }


def _results(program: Program) -> Scratch:
    """Of a tile's results on their way out, where no rows have been fetched."""
    return {"rows": [program.rows_memory(program.config.warpgroups)]}


def _columns(program: Program, *extra: int) -> Scratch:
    """Of the operands whose chunks go by.

    Args:
      program: what the kernel is compiled for.
      *extra: of each of these operands, the copies that come with a chunk, besides its columns.
    """
    return {
        "columns": [program.columns_memory() for _ in extra],
        "full": [_barriers(program, program.column_copies + x) for x in extra],
        "free": [_freed(program) for _ in extra],
    }


def _table(program: Program) -> Scratch:
    """Of the blocks of a tile that stays from image to image."""
    if program.images == 1:
        return {}
    chunks = program.layout.blocks.num_chunks
    return {"stored": (program.table_memory(), plgpu.Barrier(num_arrivals=chunks))}


def _weights(program: Program) -> Scratch:
    """Of what is multiplied from registers, which the interpreter cannot."""
    if not program.interpret:
        return {}
    shape = (program.config.warpgroups, GROUP_ROWS, program.columns)
    return {"left": plgpu.SMEM(shape, program.dtype)}


def _freed(program: Program) -> Any:
    """Barriers that tell who copies that who multiplies is done, where those are others."""
    return _barriers(program, program.config.warpgroups) if program.config.copying else None


def _barriers(program: Program, arrivals: int) -> Any:
    """A barrier for each place of the ring."""
    return plgpu.Barrier(num_barriers=program.config.num_stages, num_arrivals=arrivals)
