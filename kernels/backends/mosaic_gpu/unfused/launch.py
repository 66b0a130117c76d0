"""Launching the kernels of the unfused ops."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from natjax.kernels.backends.mosaic_gpu import run
from natjax.kernels.backends.mosaic_gpu.program import Program
from natjax.kernels.backends.mosaic_gpu.unfused import kernels
from natjax.kernels.backends.mosaic_gpu.unfused.slots import parts_of_tokens
from natjax.kernels.spec import Kernel, KernelCall


def _program(call: KernelCall, kernel: Kernel, x: Array, heads: int, kv_heads: int) -> Program:
    """What a kernel is compiled for.

    Raises:
      ValueError: the settings have tiles of more than one warpgroup.
    """
    program = run.program_of(call, kernel, x, heads, kv_heads)
    if program.config.warpgroups > 1:
        raise ValueError(f'tile of kernel "{kernel}" must have 64 rows; got {program.config.tile}')
    return program


def qk(call: KernelCall, q: Array, k: Array, *plan: Array) -> tuple[Array, ...]:
    """Logits of the window slots of queries."""
    heads, neighborhood = q.shape[2], call.spec.neighborhood
    program = _program(call, "qk", q, heads, k.shape[2])
    layout = program.layout
    has_table, plan = run.plan_of(program, plan)
    parts, _ = parts_of_tokens(neighborhood, heads)
    shape = (*q.shape[:3], neighborhood.num_neighbors)
    (logits,) = run.run(
        program,
        "qk",
        functools.partial(kernels.qk, program, has_table),
        run.num_blocks(program, heads),
        [jax.ShapeDtypeStruct(_of_images(shape), q.dtype)],
        layout.lines(q),
        layout.lines(k),
        layout.by_tile(jnp.asarray(parts))[0, 0],
        *plan,
    )
    return (logits.reshape(shape),)


def av(call: KernelCall, w: Array, v: Array, *plan: Array) -> tuple[Array, ...]:
    """Weighted sums of the values in the windows of queries."""
    heads = w.shape[2]
    program = _program(call, "av", v, heads, v.shape[2])
    layout = program.layout
    _, plan = run.plan_of(program, plan)
    parts, _ = parts_of_tokens(call.spec.neighborhood, heads)
    result = jax.ShapeDtypeStruct((*w.shape[:3], v.shape[-1]), v.dtype)
    (out,) = run.run(
        program,
        "av",
        functools.partial(kernels.av, program),
        run.num_blocks(program, heads),
        [jax.eval_shape(layout.lines, result)],
        w.reshape(_of_images(w.shape)),
        layout.lines(v),
        layout.by_tile(jnp.asarray(parts))[0, 0],
        *plan,
    )
    return (layout.tokens(out, heads),)


def av_transposed(call: KernelCall, w: Array, x: Array, *plan: Array) -> tuple[Array, ...]:
    """Weighted sums, for each key, of what the queries have that see it."""
    batch, tokens, heads, width = x.shape
    # At least the one key head that devices share, where each has a part of its query heads.
    kv_heads = max(1, heads // call.groups)
    program = _program(call, "av_transposed", x, heads, kv_heads)
    layout = program.layout
    _, plan = run.plan_of(program, plan)
    queries, keys = map(jnp.asarray, parts_of_tokens(call.spec.neighborhood, heads))
    result = jax.ShapeDtypeStruct((batch, tokens, kv_heads, width), x.dtype)
    (out,) = run.run(
        program,
        "av_transposed",
        functools.partial(kernels.av_transposed, program),
        run.num_blocks(program, kv_heads),
        [jax.eval_shape(layout.lines, result)],
        w.reshape(_of_images(w.shape)),
        layout.lines(x),
        layout.by_tile(keys)[0, 0],
        layout.scalars(queries),
        *plan,
    )
    return (layout.tokens(out, kv_heads),)


def _of_images(shape: tuple[int, ...]) -> tuple[int, int]:
    """The slots of an image as one dimension."""
    return shape[0], math.prod(shape[1:])
