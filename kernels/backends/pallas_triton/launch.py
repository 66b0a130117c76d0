"""Launching the kernels: how many programs, on which arrays, with which results."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from natjax.kernels.backends.pallas_triton import fused, unfused
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import Kernel, KernelCall

# What the programs that sum blocks for the gradient of the bias should number, at most, and the
# entries of what they sum into.
_DBIAS_PROGRAMS = 2048
_LARGEST_SUMS = 2**26


def launch(kernel: Kernel, call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Run a kernel; `natjax.kernels.kernel_ops` has what each takes and returns."""
    return _LAUNCHES[kernel](call, *arrays)


def _run(
    call: KernelCall,
    kernel: Kernel,
    body: Callable[..., None],
    grid: int,
    outputs: list[jax.ShapeDtypeStruct],
    *arrays: Array,
    **sizes: int,
) -> tuple[Array, ...]:
    """Run a kernel on arrays seen as rows; results are as declared."""
    if grid == 0:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    config = call.config(kernel)
    arrays = align_varying(*arrays)
    varying = jax.typeof(arrays[0]).manual_axis_type
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs]
    body = functools.partial(body, call=call, **sizes)
    body.__name__ = f"natjax_{kernel}"  # pyrefly: ignore[missing-attribute]
    run = pl.pallas_call(
        body,
        grid=(grid,),
        out_shape=outputs,
        interpret=call.interpret,
        compiler_params=plgpu.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages
        ),
        name=f"natjax_{kernel}",
    )
    return tuple(run(*arrays))


def _as_rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _forward(call: KernelCall, q: Array, k: Array, v: Array, *plan: Array) -> tuple[Array, Array]:
    heads = q.shape[2]
    rows = q.shape[0] * q.shape[1] * heads
    out, lse = _run(
        call,
        "forward",
        fused.forward,
        q.shape[0] * heads * call.blocks("forward").num_tiles,
        [
            jax.ShapeDtypeStruct((rows, v.shape[-1]), q.dtype),
            jax.ShapeDtypeStruct((rows,), jnp.float32),
        ],
        *map(_as_rows, (q, k, v)),
        *plan,
        heads=heads,
        kv_heads=k.shape[2],
    )
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])


def _seen_as_rows(q: Array, k: Array, v: Array, do: Array, *scalars: Array) -> tuple[Array, ...]:
    return (*map(_as_rows, (q, k, v, do)), *(x.reshape(-1) for x in scalars))


def _dquery(call: KernelCall, *arrays: Array) -> tuple[Array, Array]:
    (q, k), plan = arrays[:2], arrays[7:]
    dq, delta = _run(
        call,
        "dquery",
        fused.dquery,
        q.shape[0] * q.shape[2] * call.blocks("dquery").num_tiles,
        [
            jax.ShapeDtypeStruct(_as_rows(q).shape, q.dtype),
            jax.ShapeDtypeStruct((math.prod(q.shape[:3]),), jnp.float32),
        ],
        *map(_as_rows, arrays[:5]),
        *(x.reshape(-1) for x in arrays[5:7]),
        *plan,
        heads=q.shape[2],
        kv_heads=k.shape[2],
    )
    return dq.reshape(q.shape), delta.reshape(q.shape[:-1])


def _dkeyvalue(call: KernelCall, *arrays: Array) -> tuple[Array, Array]:
    (q, k, v), plan = arrays[:3], arrays[6:]
    dk, dv = _run(
        call,
        "dkeyvalue",
        fused.dkeyvalue,
        k.shape[0] * k.shape[2] * call.blocks("dkeyvalue").num_tiles,
        [jax.ShapeDtypeStruct(_as_rows(x).shape, x.dtype) for x in (k, v)],
        *_seen_as_rows(*arrays[:6]),
        *plan,
        heads=q.shape[2],
        kv_heads=k.shape[2],
    )
    return dk.reshape(k.shape), dv.reshape(v.shape)


def _dbias(call: KernelCall, *arrays: Array) -> tuple[Array]:
    """Sums of the gradients of all blocks that took the same entries of the table."""
    q, k, table, order, first = *arrays[:2], *arrays[6:]
    items = q.shape[0] * order.shape[0]
    programs = math.prod(table.shape[:3])
    splits = max(1, min(_DBIAS_PROGRAMS // programs, _LARGEST_SUMS // table.size, items))
    (sums,) = _run(
        call,
        "dbias",
        fused.dbias,
        splits * programs if items else 0,
        [jax.ShapeDtypeStruct((splits, *table.shape), jnp.float32)],
        *_seen_as_rows(*arrays[:6]),
        table,
        order,
        first,
        heads=q.shape[2],
        kv_heads=k.shape[2],
        batch=q.shape[0],
    )
    return (sums.sum(axis=0),)


def _logits(call: KernelCall, q: Array, k: Array, *plan: Array) -> tuple[Array]:
    heads, neighbors = q.shape[2], call.spec.neighborhood.num_neighbors
    (logits,) = _run(
        call,
        "qk",
        unfused.qk,
        q.shape[0] * heads * call.blocks("qk").num_tiles,
        [jax.ShapeDtypeStruct((math.prod(q.shape[:3]) * neighbors,), q.dtype)],
        *map(_as_rows, (q, k)),
        *plan,
        heads=heads,
        kv_heads=k.shape[2],
    )
    return (logits.reshape(*q.shape[:3], neighbors),)


def _sum_of_neighbors(call: KernelCall, w: Array, v: Array, *plan: Array) -> tuple[Array]:
    heads = w.shape[2]
    (out,) = _run(
        call,
        "av",
        unfused.av,
        w.shape[0] * heads * call.blocks("av").num_tiles,
        [jax.ShapeDtypeStruct((math.prod(w.shape[:3]), v.shape[-1]), w.dtype)],
        w.reshape(-1),
        _as_rows(v),
        *plan,
        heads=heads,
        kv_heads=v.shape[2],
    )
    return (out.reshape(*w.shape[:3], v.shape[-1]),)


def _sum_of_queries(call: KernelCall, w: Array, x: Array, *plan: Array) -> tuple[Array]:
    batch, tokens, heads, width = x.shape
    # At least the one key head that devices share, where each has a part of its query heads.
    kv_heads = max(1, heads // call.groups)
    (out,) = _run(
        call,
        "av_transposed",
        unfused.av_transposed,
        batch * kv_heads * call.blocks("av_transposed").num_tiles,
        [jax.ShapeDtypeStruct((batch * tokens * kv_heads, width), x.dtype)],
        w.reshape(-1),
        _as_rows(x),
        *plan,
        heads=heads,
        kv_heads=kv_heads,
    )
    return (out.reshape(batch, tokens, kv_heads, width),)


_LAUNCHES: dict[Kernel, Callable[..., tuple[Array, ...]]] = {
    "forward": _forward,
    "dquery": _dquery,
    "dkeyvalue": _dkeyvalue,
    "dbias": _dbias,
    "qk": _logits,
    "av": _sum_of_neighbors,
    "av_transposed": _sum_of_queries,
}
