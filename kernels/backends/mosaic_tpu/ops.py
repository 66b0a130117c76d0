"""The ops, with derivatives of any order, made of the kernels.

The kernels compute the op and all its gradients in reverse mode; every other derivative, and every
platform but TPUs, is served by plain JAX (`natjax.kernels.autodiff`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels import autodiff, device
from natjax.kernels.autodiff import LOG2_E, Arrays, Operation
from natjax.kernels.backends.mosaic_tpu import run
from natjax.kernels.backends.mosaic_tpu.large import run as large
from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large, walks_of
from natjax.kernels.backends.mosaic_tpu.large.walk import Walk
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import layout_of
from natjax.kernels.backends.mosaic_tpu.support import NAME, require_support
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.pattern import HIDDEN, pattern_of
from natjax.kernels.sharding.operands import Dim, Dims, Signature
from natjax.kernels.sharding.partitioning import split_over_batch_and_heads
from natjax.kernels.spec import CallSpec, KernelCall
from natjax.kernels.specialise import require_plain

_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS, Dim.WHOLE)
_KEY = (Dim.BATCH, Dim.WHOLE, Dim.KV_HEADS, Dim.WHOLE)
_PER_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS)
_VECTOR = (Dim.WHOLE,)
_BIAS_TABLE = (Dim.HEADS, *(Dim.WHOLE,) * 4)
_MASK_TABLE = (Dim.WHOLE,) * 5


def attention(
    platform: str | None,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
    **beyond: Any,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.backends.reference.attention`; ``platform`` and ``beyond`` are as in
    `natjax.kernels.autodiff.attention`.

    Raises:
      NotImplementedError: the kernels do not take the call.
    """
    require_plain(NAME, neighborhood, beyond)
    spec = CallSpec(
        neighborhood=neighborhood,
        head_dim=key.shape[-1],
        value_dim=value.shape[-1],
        dtype=query.dtype.name,
        has_bias=rpb is not None,
    )
    heads, kv_heads = query.shape[-2], key.shape[-2]
    require_support(spec, heads)
    call = KernelCall(
        launch=run.attention,
        platform=platform,
        spec=spec,
        scale=scale,
        groups=heads // kv_heads,
        interpret=device.is_interpreted(),
        tf32=False,
        settings=(),
        with_table=frozenset(),
    )
    extra = () if additional_keys is None else (additional_keys, additional_values)
    op = _LARGE if prefers_large(spec, heads) else _ATTENTION
    return autodiff.attend(op, call, (query, key, value), rpb, extra)


def qk(platform: str | None, *args: Any, **kwargs: Any) -> Array:
    """Refuse: there is no kernel for it.

    Raises:
      NotImplementedError: always.
    """
    raise _no_unfused()


def av(platform: str | None, *args: Any, **kwargs: Any) -> Array:
    """Refuse: there is no kernel for it.

    Raises:
      NotImplementedError: always.
    """
    raise _no_unfused()


def _no_unfused() -> NotImplementedError:
    return NotImplementedError(
        f'implementation "{NAME}" has no unfused ops; use implementation="xla"'
    )


def _attention(call: KernelCall, q: Array, k: Array, v: Array, *rpb: Array) -> Arrays:
    layout = layout_of(call.spec, q.shape[2])
    dims, plan = _plan(layout, rpb)
    signature = Signature((_QUERY, _KEY, _KEY, *dims), (_QUERY, _PER_QUERY))
    return _wrapped(run.attention, call, layout, signature)(q, k, v, *plan)


def _attention_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (q, k, v, *rpb), (do, dlse) = arrays, cotangents
    layout = layout_of(call.spec, q.shape[2])
    dims, plan = _plan(layout, tuple(rpb))
    signature = Signature(
        (_QUERY, _KEY, _KEY, _QUERY, _PER_QUERY, *dims),
        (_QUERY, _KEY, _KEY, *((_BIAS_TABLE,) if rpb else ())),
    )
    kernel = _wrapped(run.attention_gradients, call, layout, signature)
    (*gradients,) = kernel(q, k, v, do, dlse, *plan)
    if not rpb:
        return tuple(gradients)
    drpb = pattern_of(layout.blocks).bias_gradient(gradients.pop())
    return *gradients, drpb.reshape(rpb[0].shape).astype(rpb[0].dtype)


def _plan(layout: Layout, rpb: Arrays) -> tuple[tuple[Dims, ...], Arrays]:
    """What kernels take besides maps, with its dimensions: the table, and `Layout.plan`."""
    pattern = pattern_of(layout.blocks)
    bias = rpb[0].reshape(-1, *pattern.bias_shape) if rpb else None
    arrays = (
        pattern.table(bias, HIDDEN, LOG2_E),
        jnp.asarray(layout.plan()),
    )
    return (_BIAS_TABLE if rpb else _MASK_TABLE, _VECTOR), arrays


def _large_attention(call: KernelCall, q: Array, k: Array, v: Array) -> Arrays:
    walk = walks_of(call.spec, q.shape[2]).queries
    signature = Signature((_QUERY, _KEY, _KEY), (_QUERY, _PER_QUERY))
    return _run_walk(large.attention, call, walk, signature, q, k, v)


def _large_gradients(
    call: KernelCall, arrays: Arrays, results: Arrays, cotangents: Arrays
) -> Arrays:
    (q, k, v), (out, lse), (do, dlse) = arrays, results, cotangents
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    walks = walks_of(call.spec, q.shape[2])
    operands = (_QUERY, _KEY, _KEY, _QUERY, _PER_QUERY, _PER_QUERY)
    given = (q, k, v, do, lse, delta)
    of_queries, of_keys = Signature(operands, (_QUERY,)), Signature(operands, (_KEY, _KEY))
    (dq,) = _run_walk(large.query_gradient, call, walks.queries, of_queries, *given)
    dk, dv = _run_walk(large.key_value_gradients, call, walks.keys, of_keys, *given)
    return dq, dk, dv


def _run_walk(
    function: Callable[..., Arrays],
    call: KernelCall,
    walk: Walk,
    signature: Signature,
    *arrays: Array,
) -> Arrays:
    """Run a launch on its arrays and the plan of its walk."""
    plan = walk.plan()
    signature = signature.taking(*((Dim.WHOLE,) * x.ndim for x in plan))
    return _wrapped(function, call, walk, signature)(*arrays, *plan)


@functools.lru_cache(256)
def _wrapped(
    function: Callable[..., Arrays], call: KernelCall, layout: Layout | Walk, signature: Signature
) -> Callable[..., Arrays]:
    """A launch that is vmapped and partitioned."""
    function = functools.partial(function, call, layout)
    return split_over_batch_and_heads(function, signature, call.groups)


_ATTENTION = Operation(_attention, _attention_gradients, autodiff.plain_attention)
_LARGE = Operation(_large_attention, _large_gradients, autodiff.plain_attention)
