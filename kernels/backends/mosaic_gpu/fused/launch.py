"""Launching the kernels of the fused op."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_gpu import run
from natjax.kernels.backends.mosaic_gpu.fused import backward
from natjax.kernels.backends.mosaic_gpu.fused.forward import forward as forward_kernel
from natjax.kernels.backends.mosaic_gpu.program import Program
from natjax.kernels.spec import Kernel, KernelCall

# What the blocks of threads that sum for the gradient of the bias should number, at most, and the
# entries of what they sum into.
_DBIAS_BLOCKS = 2048
_LARGEST_SUMS = 2**26


def _program(call: KernelCall, kernel: Kernel, q: Array, k: Array) -> Program:
    return run.program_of(call, kernel, q, q.shape[2], k.shape[2])


def forward(call: KernelCall, q: Array, k: Array, v: Array, *plan: Array) -> tuple[Array, ...]:
    """Output and log-sum-exp of queries."""
    program = _program(call, "forward", q, k)
    layout = program.layout
    has_table, plan = run.plan_of(program, plan)
    lines = [layout.lines(x) for x in (q, k, v)]
    shape = (q.shape[0], q.shape[2], layout.blocks.num_tiles, layout.blocks.num_rows)
    out, lse = run.run(
        program,
        "forward",
        functools.partial(forward_kernel, program, has_table),
        run.num_blocks(program, q.shape[2]),
        [run.like(lines[0]), jax.ShapeDtypeStruct(shape, jnp.float32)],
        *lines,
        *plan,
    )
    return layout.tokens(out, q.shape[2]), layout.of_tiles(lse)


def dquery(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """The gradient of queries, and delta."""
    (q, k, v, out, do, lse, dlse), plan = arrays[:7], arrays[7:]
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    program = _program(call, "dquery", q, k)
    layout = program.layout
    has_table, plan = run.plan_of(program, plan)
    lines = [layout.lines(x) for x in (q, k, v, do)]
    (dq,) = run.run(
        program,
        "dquery",
        functools.partial(backward.dquery, program, has_table),
        run.num_blocks(program, q.shape[2]),
        [run.like(lines[0])],
        *lines,
        layout.by_tile(lse * LOG2_E),
        layout.by_tile(delta),
        *plan,
    )
    return layout.tokens(dq, q.shape[2]), delta


def dkeyvalue(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """The gradients of keys and of values."""
    (q, k, v, do, lse, delta), plan = arrays[:6], arrays[6:]
    program = _program(call, "dkeyvalue", q, k)
    layout = program.layout
    has_table, plan = run.plan_of(program, plan)
    lines = [layout.lines(x) for x in (q, k, v, do)]
    dk, dv = run.run(
        program,
        "dkeyvalue",
        functools.partial(backward.dkeyvalue, program, has_table),
        run.num_blocks(program, k.shape[2]),
        [run.like(lines[1]), run.like(lines[2])],
        *lines,
        layout.scalars(lse * LOG2_E),
        layout.scalars(delta),
        *plan,
    )
    return layout.tokens(dk, k.shape[2]), layout.tokens(dv, k.shape[2])


def dbias(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Sums of the gradients of all blocks that took the same entries of the table."""
    (q, k, v, do, lse, delta), (table, order, begins) = arrays[:6], arrays[6:]
    program = _program(call, "dbias", q, k)
    layout = program.layout
    items = q.shape[0] * order.shape[0]
    splits = splits_of(table.shape, items)
    (sums,) = run.run(
        program,
        "dbias",
        functools.partial(backward.dbias, program, splits, q.shape[0]),
        splits * math.prod(table.shape[:3]) if items else 0,
        [jax.ShapeDtypeStruct((splits, *table.shape), jnp.float32)],
        *(layout.lines(x) for x in (q, k, v, do)),
        layout.by_tile(lse * LOG2_E),
        layout.by_tile(delta),
        table,
        order,
        begins,
    )
    return (sums.sum(axis=0),)


def splits_of(table: tuple[int, ...], items: int) -> int:
    """Blocks of threads that share the sums of a block of the table.

    Args:
      table: the shape of the table.
      items: tiles of all images.
    """
    most = min(_DBIAS_BLOCKS // math.prod(table[:3]), _LARGEST_SUMS // math.prod(table), items)
    return max(1, most)
