"""Products of a warpgroup at the tensor cores, and what is in its registers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.program import BLOCK, OF_COLUMNS, OF_ROWS, Program, Ref


def product(
    program: Program,
    rows: Ref,
    columns: Ref,
    begun: Callable[[], None] = lambda: None,
) -> jax.Array:
    """The products of a warpgroup's rows and the columns of a chunk, summed over channels.

    Args:
      program: what the kernel is compiled for.
      rows: shared memory of rows.
      columns: shared memory of columns.
      begun: called when tensor cores have been given their work, and before it is waited for.
    """

    def multiply(acc: Ref) -> jax.Array:
        for part in program.parts:
            plgpu.wgmma(acc, rows.at[part], columns.at[part].transpose((1, 0)))
        begun()
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((GROUP_ROWS, program.columns), jnp.float32))


def accumulate(
    program: Program, sums: Sequence[jax.Array], weights: jax.Array, columns: Ref, left: Ref
) -> list[jax.Array]:
    """Add to sums, part by part, the weighted sum of the columns of a chunk for each row.

    Args:
      program: what the kernel is compiled for.
      sums: what is added to.
      weights: of each row and column, in registers.
      columns: shared memory of columns.
      left: shared memory for the weights where the kernel is interpreted: Pallas' interpreter does
        not multiply what is in registers, nor begin with sums.
    """
    weights = weights.astype(program.dtype)
    if not program.interpret:
        multiply = functools.partial(_multiply, weights=weights, columns=columns)
        return list(pl.run_state(multiply)(tuple(map(plgpu.ACC.init, sums))))
    left[...] = weights
    plgpu.commit_smem()

    def alone(acc: Ref, part: int) -> jax.Array:
        plgpu.wgmma(acc, left, columns.at[part])
        return acc[...]

    shape = plgpu.ACC((GROUP_ROWS, program.elements), jnp.float32)
    return [
        x + pl.run_scoped(functools.partial(alone, part=part), shape) for part, x in enumerate(sums)
    ]


def _multiply(sums: tuple[Ref, ...], weights: jax.Array, columns: Ref) -> None:
    for part, acc in enumerate(sums):
        plgpu.wgmma(acc, weights, columns.at[part])


def zeros(program: Program) -> list[jax.Array]:
    """Sums over columns to begin with, part by part."""
    empty = jnp.zeros((GROUP_ROWS, program.elements), jnp.float32)
    return [plgpu.layout_cast(empty, BLOCK) for _ in program.parts]


def per_row(value: float) -> jax.Array:
    """A number of each row, the same for all."""
    return plgpu.layout_cast(jnp.full((GROUP_ROWS,), value, jnp.float32), OF_ROWS)


def scalars(program: Program, source: Ref) -> jax.Array:
    """The number of each column of a chunk, from shared memory of the chunk's shape."""
    shape = (program.columns,)
    if program.interpret:  # which knows no other shape of what lies in memory
        return plgpu.layout_cast(plgpu.load(source).reshape(shape), OF_COLUMNS)
    return plgpu.load(source.reshape(shape), layout=OF_COLUMNS, optimized=False)


def across(x: jax.Array, columns: int) -> jax.Array:
    """A number of each row, for all columns."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (GROUP_ROWS, columns), [0]), BLOCK)


def along(x: jax.Array) -> jax.Array:
    """A number of each column, for all rows."""
    return plgpu.layout_cast(lax.broadcast_in_dim(x, (GROUP_ROWS, *x.shape), [1]), BLOCK)


def write(program: Program, sums: Sequence[jax.Array], target: Ref) -> None:
    """Put sums into shared memory, rounded."""
    for part, x in enumerate(sums):
        target[part] = x.astype(program.dtype)
