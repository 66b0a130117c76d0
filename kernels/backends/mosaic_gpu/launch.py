"""Launching the kernels: how many blocks of threads, on which arrays, with which memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_gpu import backward, interpreter
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.forward import forward
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.backends.mosaic_gpu.program import Program
from natjax.kernels.plan.reach import skipping_pays
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import Kernel, KernelCall

# Blocks of threads that keep an H100's 132 multiprocessors busy: four for each.
_LEAST_BLOCKS = 4 * 132
# What the blocks of threads that sum for the gradient of the bias should number, at most, and the
# entries of what they sum into.
_DBIAS_BLOCKS = 2048
_LARGEST_SUMS = 2**26


@functools.partial(jax.jit, static_argnums=(0, 1))  # its own, since plans become constants of it
def launch(kernel: Kernel, call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Run a kernel; `natjax.kernels.autodiff` has what each takes and returns."""
    results = _LAUNCHES[kernel](call, *arrays)
    # Pallas does not say over which axes of a mesh its results vary.
    return align_varying(*results, arrays[0])[:-1]


def _program(call: KernelCall, kernel: Kernel, q: Array, k: Array) -> Program:
    blocks = call.blocks(kernel)
    return Program(
        layout=Layout.of(blocks),
        config=call.config(kernel),
        heads=q.shape[2],
        kv_heads=k.shape[2],
        width=q.shape[-1],
        dtype=jnp.dtype(q.dtype),
        scale=float(call.scale),
        batch=q.shape[0],
        images=_images(call, kernel, q),
        skips_chunks=kernel != "dbias" and skipping_pays(blocks),
        interpret=call.interpret,
    )


def _images(call: KernelCall, kernel: Kernel, q: Array) -> int:
    """Images that a block of threads works on, one after the other."""
    if kernel not in call.with_table or kernel not in ("forward", "dquery"):
        return 1
    batch, _, heads, _ = q.shape
    tiles = heads * call.blocks(kernel).num_tiles
    return images_of_a_block(call.config(kernel).images, batch, tiles)


def images_of_a_block(most: int, batch: int, tiles: int) -> int:
    """At most so many, and fewer where there would be too few blocks of threads.

    Args:
      most: the setting.
      batch: images.
      tiles: of all heads of an image.
    """
    return max(1, min(most, batch, batch * tiles // _LEAST_BLOCKS))


def _run(
    program: Program,
    kernel: Kernel,
    body: Callable[..., None],
    blocks: int,
    outputs: list[jax.ShapeDtypeStruct],
    scratch: dict[str, Any],
    *arrays: Array,
) -> tuple[Array, ...]:
    """Run a kernel by so many blocks of threads; results are as declared."""
    if blocks == 0:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    run = plgpu.kernel(
        body,
        out_type=outputs,
        grid=(blocks,),
        grid_names=("block",),
        num_threads=program.config.warpgroups + 1,
        thread_name="warpgroup",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            # What copies boxes, and products of what is in registers, are of these semantics.
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
        interpret=interpreter.params() if program.interpret else None,
        kernel_name=f"natjax_{kernel}",
    )
    return tuple(run(*align_varying(*arrays)))


def _plan(layout: Layout, arrays: tuple[Array, ...]) -> tuple[bool, tuple[Array, Array, Array]]:
    """Whether there is a table; and that, the kind of each tile, and which chunks each meets.

    Without a table, the windows of rows and of whole tiles stand in its place.
    """
    if len(arrays) == 1:
        whole = jnp.asarray(layout.whole_windows())
        return False, (layout.row_windows(), whole, arrays[0])
    table, kind, reach = arrays
    return True, (table, kind, reach)


def _scratch(program: Program, rows: int, extra: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Shared memory and barriers of a kernel whose tile stays and whose columns go by.

    Args:
      program: what the kernel is compiled for.
      rows: operands that are rows; those that are columns are two.
      extra: copies beside those of the columns, of either of these.
    """
    config = program.config
    copies = (program.column_copies + x for x in extra)
    arrivals = rows * program.row_lines * len(program.parts)
    scratch = {
        "rows": [program.rows_memory(config.warpgroups) for _ in range(rows)],
        "arrived": plgpu.Barrier(num_barriers=config.warpgroups, num_arrivals=arrivals),
        "columns": [program.columns_memory() for _ in range(2)],
        "full": [_barriers(program, number) for number in copies],
        "free": [_barriers(program, config.warpgroups) for _ in range(2)],
    }
    if program.images > 1:
        chunks = program.layout.blocks.num_chunks
        scratch["stored"] = program.table_memory(), plgpu.Barrier(num_arrivals=chunks)
    if program.interpret:
        shape = (config.warpgroups, GROUP_ROWS, program.columns)
        scratch["left"] = plgpu.SMEM(shape, program.dtype)
    return scratch


def _barriers(program: Program, arrivals: int) -> Any:
    return plgpu.Barrier(num_barriers=program.config.num_stages, num_arrivals=arrivals)


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _num_blocks(program: Program, q: Array, heads: int) -> int:
    return -(-q.shape[0] // program.images) * heads * program.layout.blocks.num_tiles


def _forward(call: KernelCall, q: Array, k: Array, v: Array, *plan: Array) -> tuple[Array, ...]:
    program = _program(call, "forward", q, k)
    layout = program.layout
    has_table, plan = _plan(layout, plan)
    lines = [layout.lines(x) for x in (q, k, v)]
    scratch = _scratch(program, rows=1)
    if program.config.warpgroups == 2:
        scratch["turns"] = plgpu.Barrier(num_arrivals=2)
    shape = (q.shape[0], q.shape[2], layout.blocks.num_tiles, layout.blocks.num_rows)
    out, lse = _run(
        program,
        "forward",
        functools.partial(forward, program, has_table),
        _num_blocks(program, q, q.shape[2]),
        [_like(lines[0]), jax.ShapeDtypeStruct(shape, jnp.float32)],
        scratch,
        *lines,
        *plan,
    )
    return layout.tokens(out, q.shape[2]), layout.of_tiles(lse)


def _dquery(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    (q, k, v, out, do, lse, dlse), plan = arrays[:7], arrays[7:]
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    program = _program(call, "dquery", q, k)
    layout = program.layout
    has_table, plan = _plan(layout, plan)
    lines = [layout.lines(x) for x in (q, k, v, do)]
    (dq,) = _run(
        program,
        "dquery",
        functools.partial(backward.dquery, program, has_table),
        _num_blocks(program, q, q.shape[2]),
        [_like(lines[0])],
        _scratch(program, rows=2),
        *lines,
        layout.by_tile(lse * LOG2_E),
        layout.by_tile(delta),
        *plan,
    )
    return layout.tokens(dq, q.shape[2]), delta


def _dkeyvalue(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    (q, k, v, do, lse, delta), plan = arrays[:6], arrays[6:]
    program = _program(call, "dkeyvalue", q, k)
    layout = program.layout
    has_table, plan = _plan(layout, plan)
    lines = [layout.lines(x) for x in (q, k, v, do)]
    scalar_copies = math.prod(layout.chunk[:2])
    scratch = _scratch(program, rows=2, extra=(scalar_copies, scalar_copies))
    shape = (program.config.num_stages, program.columns)
    scratch["scalars"] = [plgpu.SMEM(shape, jnp.float32) for _ in range(2)]
    dk, dv = _run(
        program,
        "dkeyvalue",
        functools.partial(backward.dkeyvalue, program, has_table),
        _num_blocks(program, q, k.shape[2]),
        [_like(lines[1]), _like(lines[2])],
        scratch,
        *lines,
        layout.scalar_lines(lse * LOG2_E),
        layout.scalar_lines(delta),
        *plan,
    )
    return layout.tokens(dk, k.shape[2]), layout.tokens(dv, k.shape[2])


def _dbias(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Sums of the gradients of all blocks that took the same entries of the table."""
    (q, k, v, do, lse, delta), (table, order, begins) = arrays[:6], arrays[6:]
    program = _program(call, "dbias", q, k)
    layout, config = program.layout, program.config
    items = q.shape[0] * order.shape[0]
    blocks = math.prod(table.shape[:3])
    splits = max(1, min(_DBIAS_BLOCKS // blocks, _LARGEST_SUMS // table.size, items))
    row_copies = config.warpgroups * program.row_lines * len(program.parts)
    copies = (row_copies, row_copies, program.column_copies, program.column_copies)
    rows = config.num_stages * config.warpgroups
    scratch = {
        "rows": [program.rows_memory(rows) for _ in range(2)],
        "columns": [program.columns_memory() for _ in range(2)],
        "full": [_barriers(program, number) for number in copies],
        "free": [_barriers(program, config.warpgroups) for _ in copies],
    }
    (sums,) = _run(
        program,
        "dbias",
        functools.partial(backward.dbias, program, splits, q.shape[0]),
        splits * blocks if items else 0,
        [jax.ShapeDtypeStruct((splits, *table.shape), jnp.float32)],
        scratch,
        *(layout.lines(x) for x in (q, k, v, do)),
        layout.by_tile(lse * LOG2_E),
        layout.by_tile(delta),
        table,
        order,
        begins,
    )
    return (sums.sum(axis=0),)


_LAUNCHES: dict[Kernel, Callable[..., tuple[Array, ...]]] = {
    "forward": _forward,
    "dquery": _dquery,
    "dkeyvalue": _dkeyvalue,
    "dbias": _dbias,
}
