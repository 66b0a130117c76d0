"""Parts of the kernels for Hopper, each alone, and what they should give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from natjax.kernels import device
from natjax.kernels.backends.mosaic_gpu import copies, interpreter, registers, settings
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.backends.mosaic_gpu.program import BLOCK, Program
from natjax.kernels.backends.mosaic_gpu.unfused import scattered
from natjax.kernels.plan.blocks import unravel
from natjax.kernels.spec import blocks_of
from natjax.kernels.tuning.problems import Problem


def program_of(problem: Problem, config: settings) -> Program:
    """A program for queries of a problem."""
    return Program(
        layout=Layout.of(blocks_of("forward", config, problem.neighborhood)),
        config=config,
        heads=problem.heads,
        kv_heads=problem.heads,
        width=problem.head_dim,
        dtype=jnp.dtype("bfloat16"),
        scale=1.0,
        batch=1,
        images=1,
        skips_chunks=False,
        interpret=device.is_interpreted(),
    )


def copied_chunks(program: Program, x: jax.Array) -> jax.Array:
    """What `program.fetch_columns` copies: the first chunk of each tile of the last head.

    Args:
      program: what the copies are of.
      x: lines of tokens of one image.

    Returns:
      ``[tiles, parts, columns, elements]``.
    """
    tiles = program.layout.blocks.num_tiles
    shape = (tiles, len(program.parts), program.columns, program.elements)

    def body(source: Any, out: Any, memory: Any, arrived: Any) -> None:
        tile = lax.axis_index("block")
        head = jnp.int32(program.heads - 1)
        place = program.place(tile, head, jnp.int32(0))
        chunk = program.chunk(place, (jnp.int32(0),) * 3)
        first = program.tokens(memory, program.column_lines).at(0)
        copies.fetch_columns(program, source, first, arrived, place, chunk, head, program.heads)
        plgpu.barrier_wait(arrived)
        for part in program.parts:
            plgpu.copy_smem_to_gmem(first.flat.at[part], out.at[tile, part])
        plgpu.wait_smem_to_gmem(0)

    scratch = [program.columns_memory(), plgpu.Barrier(num_arrivals=program.column_copies)]
    return _run(body, jax.ShapeDtypeStruct(shape, x.dtype), tiles, scratch, program)(x)


def expected_chunks(program: Program, x: np.ndarray) -> np.ndarray:
    """The same by indexing tokens ``[*X, N, D]``, zeros past the end of the last axis."""
    layout, tiles = program.layout, []
    axes = layout.blocks.axes
    x = x.reshape(*(w.length for w in layout.windows), *x.shape[-2:])
    for tile in range(layout.blocks.num_tiles):
        index = unravel(tile, [axis.num_tiles for axis in axes])
        slab = [int(axis.locate(np.asarray(i))[2]) for axis, i in zip(axes, index, strict=True)]
        box = np.zeros((*layout.chunk, program.width), x.dtype)
        for at in itertools.product(*map(range, layout.chunk)):
            token = [s + i for s, i in zip(slab, at, strict=True)]
            token[:2] = [min(t, p - 1) for t, p in zip(token[:2], layout.places[:2], strict=True)]
            if token[2] < layout.places[2]:
                box[at] = x[*token, -1]
        parts = box.reshape(-1, len(program.parts), program.elements)
        tiles.append(parts.transpose(1, 0, 2))
    return np.stack(tiles)


def copied_rows(program: Program, x: jax.Array) -> jax.Array:
    """What is left of tokens that all tiles fetch as rows and store again: all of them.

    Args:
      program: what the copies are of.
      x: lines of tokens of one image.
    """

    def body(source: Any, out: Any, memory: Any, arrived: Any) -> None:
        place, first = program.place_of_block(program.heads), jnp.int32(0)
        rows = program.tokens(memory, program.fetched_lines).at(0)
        copies.fetch_rows(program, source, rows, arrived, place, program.heads, first)
        plgpu.barrier_wait(arrived)
        copies.store_rows(program, rows, out, place, program.heads, first)

    scratch = [program.rows_memory(1), plgpu.Barrier(num_arrivals=program.row_copies)]
    blocks = program.heads * program.layout.blocks.num_tiles
    return _run(body, jax.ShapeDtypeStruct(x.shape, x.dtype), blocks, scratch, program)(x)


def copied_scalars(program: Program, x: jax.Array) -> jax.Array:
    """What `copies.fetch_scalars` copies: a number of each column of the first chunk of each tile.

    Args:
      program: what the copies are of.
      x: a number of each token and head, as `Layout.scalars` has them, of one image.

    Returns:
      ``[tiles, columns]``, of the last head.
    """
    tiles = program.layout.blocks.num_tiles

    def body(source: Any, out: Any, memory: Any, arrived: Any) -> None:
        tile, head = lax.axis_index("block"), jnp.int32(program.heads - 1)
        place = program.place(tile, head, jnp.int32(0))
        chunk = program.chunk(place, (jnp.int32(0),) * 3)
        copies.fetch_scalars(
            program, source, memory.at[0], arrived, place, chunk, head, program.heads
        )
        plgpu.barrier_wait(arrived)
        numbers = registers.scalars(program, memory.at[0])
        plgpu.store(out.at[tile], numbers, optimized=False)

    scratch = [program.scalars_memory(x.dtype), plgpu.Barrier(num_arrivals=1)]
    out = jax.ShapeDtypeStruct((tiles, program.columns), x.dtype)
    return _run(body, out, tiles, scratch, program)(x)


def weighted_sum(program: Program, weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weights ``[64, columns]`` times ``[columns, width]``, by `program.accumulate`."""

    def body(given: Any, source: Any, out: Any, memory: Any, arrived: Any, left: Any) -> None:
        flat = program.tokens(memory, program.column_lines).flat.at[0]
        for part in program.parts:
            channels = pl.ds(part * program.elements, program.elements)
            plgpu.copy_gmem_to_smem(source.at[:, channels], flat.at[part], arrived)
        plgpu.barrier_wait(arrived)
        own = plgpu.load(given.at[:, :], layout=BLOCK, optimized=False)
        sums = registers.accumulate(program, registers.zeros(program), own, flat, left)
        for part, result in enumerate(sums):
            plgpu.store(out.at[part, :, :], result, optimized=False)

    shape = (len(program.parts), GROUP_ROWS, program.elements)
    scratch = [
        program.columns_memory(),
        plgpu.Barrier(num_arrivals=len(program.parts)),
        plgpu.SMEM((GROUP_ROWS, program.columns), program.dtype),
    ]
    run = _run(body, jax.ShapeDtypeStruct(shape, jnp.float32), 1, scratch, program)
    return jnp.concatenate(list(run(weights, x)), axis=1)


def gathered_and_scattered(
    program: Program, x: jax.Array, places: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numbers ``[n]`` at places ``[64, columns]``; and those put back where they were.

    Places of a row are among as many as there are columns.
    """

    def body(source: Any, given: Any, found: Any, target: Any) -> None:
        own = plgpu.load(given.at[:, :], layout=BLOCK, optimized=False)
        numbers = scattered.gather(program, source, own)
        plgpu.store(found.at[:, :], numbers, optimized=False)
        scattered.scatter(program, target, own, numbers, program.columns)

    out = [jax.ShapeDtypeStruct(places.shape, x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)]
    return tuple(_run(body, out, 1, [], program)(x, places))


def _run(body: Any, out: Any, blocks: int, scratch: Any, program: Program) -> Callable[..., Any]:
    return jax.jit(
        plgpu.kernel(
            body,
            out_type=out,
            grid=(blocks,),
            grid_names=("block",),
            num_threads=1,
            thread_name="warpgroup",
            scratch_types=scratch,
            compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
            interpret=interpreter.params() if program.interpret else None,
        )
    )
