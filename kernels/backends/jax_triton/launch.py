"""Launching the kernels: how many programs, on which arrays, with which results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from natjax.kernels.backends.jax_triton import statics
from natjax.kernels.plan.pattern import HIDDEN
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import Kernel, KernelCall

# What the programs that sum blocks for the gradient of the bias should number, at most, and the
# entries of what they sum into.
_DBIAS_PROGRAMS = 2048
_LARGEST_SUMS = 2**26
# What a program that sums a whole slab has of images, at least, where there are as many: what it
# writes at the end is as much as it reads of two or three.
_LEAST_IMAGES = 4
# What tables of half-precision calls hold instead of larger numbers, and of hidden.
_LARGEST_BIAS = 2.0**15


def launch(kernel: Kernel, call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Run a kernel; `natjax.kernels.kernel_ops` has what each takes and returns."""
    return _LAUNCHES[kernel](call, *arrays)


def _run(
    call: KernelCall,
    kernel: Kernel,
    grid: int,
    outputs: list[tuple[tuple[int, ...], Any]],
    *arrays: Array,
    body: str | None = None,
    **sizes: Any,
) -> tuple[Array, ...]:
    """Run a kernel, of the body that has its name or another, on arrays; results are as declared.

    Triton is imported here and not with the module: who has other kernels should not wait for it.
    """
    if grid == 0:
        return tuple(jnp.zeros(shape, dtype) for shape, dtype in outputs)
    from natjax.kernels.backends.jax_triton import bodies

    config = call.config(kernel)
    results = bodies.run(
        body or kernel,
        grid,
        align_varying(*arrays),
        [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs],
        name=f"natjax_{kernel}",
        interpret=call.interpret,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        s=statics.statics_of(call, kernel, **sizes),
    )
    # jax-triton does not say over which axes of a mesh its results vary.
    return align_varying(*results, arrays[0])[:-1]


def _plan(call: KernelCall, arrays: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """The table, the kind of each tile, and which chunks each tile meets.

    Without a table the last one stands for the others, which are not looked at then.
    """
    if len(arrays) == 1:
        return arrays[0], arrays[0], arrays[0]
    table, kind, reach = arrays
    return _narrow(call, table), kind, reach


def _narrow(call: KernelCall, table: Array) -> Array:
    """A table as exact as what is computed with it, and no larger.

    It is the largest of what kernels read. float16 has three bits more than bfloat16, of which the
    weights of a bfloat16 call are.
    """
    if call.spec.dtype == "float32":
        return table
    clipped = jnp.clip(table, -_LARGEST_BIAS, _LARGEST_BIAS)
    return jnp.where(table > HIDDEN / 2, clipped, -jnp.inf).astype(jnp.float16)


def _sizes(q: Array, k: Array, v: Array, plan: tuple[Array, ...]) -> dict[str, Any]:
    return {
        "heads": q.shape[2],
        "kv_heads": k.shape[2],
        "width": k.shape[-1],
        "value_width": v.shape[-1],
        "table": plan[0].shape if len(plan) > 1 else None,
    }


def _forward(call: KernelCall, q: Array, k: Array, v: Array, *plan: Array) -> tuple[Array, ...]:
    return _run(
        call,
        "forward",
        q.shape[0] * q.shape[2] * call.blocks("forward").num_tiles,
        [((*q.shape[:-1], v.shape[-1]), q.dtype), (q.shape[:-1], jnp.float32)],
        q,
        k,
        v,
        *_plan(call, plan),
        **_sizes(q, k, v, plan),
    )


def _dquery(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    if call.sums_bias:
        return _dquery_and_dbias(call, *arrays)
    (q, k, v), plan = arrays[:3], arrays[7:]
    return _run(
        call,
        "dquery",
        q.shape[0] * q.shape[2] * call.blocks("dquery").num_tiles,
        [(q.shape, q.dtype), (q.shape[:-1], jnp.float32)],
        *arrays[:7],
        *_plan(call, plan),
        **_sizes(q, k, v, plan),
    )


def _dquery_and_dbias(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """The same with the sums of blocks of each kind, which the programs' sums are added up to."""
    (q, k, v), (table, order, begin, kind) = arrays[:3], arrays[7:]
    batch, shares, heads = q.shape[0], kind.shape[0], q.shape[2]
    splits = min(_DBIAS_PROGRAMS // max(1, shares * heads), batch // _LEAST_IMAGES)
    images = -(-batch // max(1, splits))
    splits = -(-batch // max(1, images))
    entries = table.shape[2:]
    dq, delta, sums = _run(
        call,
        "dquery",
        splits * shares * heads,
        [
            (q.shape, q.dtype),
            (q.shape[:-1], jnp.float32),
            ((heads, splits, shares, *entries), jnp.float32),
        ],
        *arrays[:7],
        _narrow(call, table),
        order,
        begin,
        kind,
        body="dquery_and_dbias",
        **_sizes(q, k, v, (table, order, begin, kind)),
        batch=batch,
        splits=splits,
        images=images,
        shares=shares,
    )
    is_of_kind = kind[None] == jnp.arange(table.shape[1], dtype=kind.dtype)[:, None]
    by_kind = jnp.einsum(
        "kg,nsgcij->nkcij", is_of_kind.astype(jnp.float32), sums, precision="highest"
    )
    return dq, delta, by_kind


def _dkeyvalue(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    (q, k, v), plan = arrays[:3], arrays[6:]
    return _run(
        call,
        "dkeyvalue",
        k.shape[0] * k.shape[2] * call.blocks("dkeyvalue").num_tiles,
        [(k.shape, k.dtype), (v.shape, v.dtype)],
        *arrays[:6],
        *_plan(call, plan),
        **_sizes(q, k, v, plan),
    )


def _dbias(call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Sums of the gradients of all blocks that took the same entries of the table."""
    (q, k, v), (table, order, begin) = arrays[:3], arrays[6:]
    items = q.shape[0] * order.shape[0]
    programs = math.prod(table.shape[:3])
    splits = max(1, min(_DBIAS_PROGRAMS // programs, _LARGEST_SUMS // table.size, items))
    (sums,) = _run(
        call,
        "dbias",
        splits * programs if items else 0,
        [((splits, *table.shape), jnp.float32)],
        *arrays[:6],
        _narrow(call, table),
        order,
        begin,
        **_sizes(q, k, v, (table, order, begin)),
        batch=q.shape[0],
        splits=splits,
    )
    return (sums.sum(axis=0),)


def _logits(call: KernelCall, q: Array, k: Array, *plan: Array) -> tuple[Array, ...]:
    return _run(
        call,
        "qk",
        q.shape[0] * q.shape[2] * call.blocks("qk").num_tiles,
        [((*q.shape[:3], call.spec.neighborhood.num_neighbors), q.dtype)],
        q,
        k,
        *_plan(call, plan),
        **_sizes(q, k, k, plan),
    )


def _sum_of_neighbors(call: KernelCall, w: Array, v: Array, reach: Array) -> tuple[Array, ...]:
    return _run(
        call,
        "av",
        w.shape[0] * w.shape[2] * call.blocks("av").num_tiles,
        [((*w.shape[:3], v.shape[-1]), w.dtype)],
        w,
        v,
        reach,
        **_sizes(w, v, v, ()),
    )


def _sum_of_queries(call: KernelCall, w: Array, x: Array, reach: Array) -> tuple[Array, ...]:
    batch, tokens, heads, width = x.shape
    # At least the one key head that devices share, where each has a part of its query heads.
    kv_heads = max(1, heads // call.groups)
    return _run(
        call,
        "av_transposed",
        batch * kv_heads * call.blocks("av_transposed").num_tiles,
        [((batch, tokens, kv_heads, width), x.dtype)],
        w,
        x,
        reach,
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        value_width=width,
    )


_LAUNCHES: dict[Kernel, Callable[..., tuple[Array, ...]]] = {
    "forward": _forward,
    "dquery": _dquery,
    "dkeyvalue": _dkeyvalue,
    "dbias": _dbias,
    "qk": _logits,
    "av": _sum_of_neighbors,
    "av_transposed": _sum_of_queries,
}
