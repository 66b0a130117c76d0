"""Running a kernel: what it is compiled for, and how many blocks of threads it takes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from natjax.kernels.backends.mosaic_gpu import interpreter
from natjax.kernels.backends.mosaic_gpu.config import STAYING, skips_chunks
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.backends.mosaic_gpu.memory import Memory, memory_of
from natjax.kernels.backends.mosaic_gpu.program import Program
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import Kernel, KernelCall

# Blocks of threads that keep an H100's 132 multiprocessors busy: four for each.
_LEAST_BLOCKS = 4 * 132


def program_of(call: KernelCall, kernel: Kernel, x: Array, heads: int, kv_heads: int) -> Program:
    """What a kernel is compiled for.

    Args:
      call: the call.
      kernel: which kernel.
      x: an operand ``[B, T, N, D]`` of the width that is summed or multiplied over.
      heads: query heads at hand.
      kv_heads: key heads at hand.
    """
    blocks, config = call.blocks(kernel), call.config(kernel)
    images = 1
    if kernel in call.with_table and kernel in STAYING:
        images = images_of_a_block(config.images, x.shape[0], heads * blocks.num_tiles)
    return Program(
        layout=Layout.of(blocks),
        config=config,
        heads=heads,
        kv_heads=kv_heads,
        width=x.shape[-1],
        dtype=jnp.dtype(x.dtype),
        scale=float(call.scale),
        batch=x.shape[0],
        images=images,
        skips_chunks=skips_chunks(kernel, blocks),
        interpret=call.interpret,
    )


def images_of_a_block(most: int, batch: int, tiles: int) -> int:
    """Images that a block of threads works on, one after the other.

    At most so many, and fewer where there would be too few blocks of threads.

    Args:
      most: the setting.
      batch: images.
      tiles: of all heads of an image.
    """
    return max(1, min(most, batch, batch * tiles // _LEAST_BLOCKS))


def run(
    program: Program,
    kernel: Kernel,
    body: Callable[..., None],
    blocks: int,
    outputs: list[jax.ShapeDtypeStruct],
    *arrays: Array,
) -> tuple[Array, ...]:
    """Run a kernel by so many blocks of threads; results are as declared.

    Args:
      program: what the kernel is compiled for.
      kernel: its name.
      body: what each block of threads does, a function of operands and results, and of its
        ``memory``.
      blocks: how many there are.
      outputs: shapes and dtypes of the results.
      *arrays: operands.
    """
    if blocks == 0:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    kernel_of = plgpu.kernel(
        lambda *refs, **scratch: body(*refs, memory=Memory.of(program, **scratch)),
        out_type=outputs,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=program.config.warpgroups + program.config.copying,
        thread_name="warpgroup",
        scratch_types=memory_of(kernel, program),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            # What copies boxes, and products of what is in registers, are of these semantics.
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
        interpret=interpreter.params() if program.interpret else None,
        kernel_name=f"natjax_{kernel}",
    )
    return tuple(kernel_of(*align_varying(*arrays)))


def num_blocks(program: Program, heads: int) -> int:
    """Blocks of threads of a kernel whose rows have so many heads."""
    return -(-program.batch // program.images) * heads * program.layout.blocks.num_tiles


def plan_of(program: Program, arrays: tuple[Array, ...]) -> tuple[bool, tuple[Array, Array, Array]]:
    """Whether there is a table; and that, the kind of each tile, and which chunks each meets.

    Without a table, the windows of rows and of whole tiles stand in its place. Where two warpgroups
    multiply, which chunks the rows of either meet comes after those of their tile.
    """
    layout, (*table, reach) = program.layout, arrays
    if program.config.warpgroups == 2:
        halves = jnp.asarray(layout.reach_of_halves())
        reach = jnp.concatenate([reach, halves], axis=1)
    if table:
        return True, (*table, reach)
    return False, (layout.row_windows(), jnp.asarray(layout.whole_windows()), reach)


def like(x: Array) -> jax.ShapeDtypeStruct:
    """A result of the shape and dtype of an operand."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
