"""The ops, with derivatives of any order, made of the kernels.

The kernels compute the op and all its gradients in reverse mode; every other derivative, and every
platform but TPUs, is served by plain JAX (`natjax.kernels.autodiff`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from natjax.kernels import autodiff, device
from natjax.kernels.autodiff import Arrays, Operation
from natjax.kernels.backends.mosaic_tpu import run
from natjax.kernels.backends.mosaic_tpu.large import run as large
from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large, walks_of
from natjax.kernels.backends.mosaic_tpu.large.walk import Walk
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import layout_of
from natjax.kernels.backends.mosaic_tpu.support import NAME, require_support
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.sharding.batching import vmap_into_batch
from natjax.kernels.sharding.mapped import map_over_batch_and_heads
from natjax.kernels.sharding.operands import Dim, Signature
from natjax.kernels.sharding.placement import placement_of
from natjax.kernels.spec import CallSpec, KernelCall
from natjax.kernels.specialise import require_plain

QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS, Dim.WHOLE)
KEY = (Dim.BATCH, Dim.WHOLE, Dim.KV_HEADS, Dim.WHOLE)
_PER_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS)
BIAS = (Dim.SETS, Dim.HEADS, Dim.WHOLE)
PLAN = (Dim.WHOLE,)


def attention(
    platform: str | None,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    value: Float[Array, "B *Y M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
    part: Int[Array, "axes"] | None = None,
    **beyond: Any,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.backends.reference.attention`; ``platform`` and ``beyond`` are as in
    `natjax.kernels.kernel_ops.attention`, and ``part`` as in
    `natjax.kernels.backends.xla.attention`.

    Raises:
      NotImplementedError: the kernels do not take the call.
    """
    arrays = query, key, value
    call = call_of(run.attention, platform, arrays, neighborhood, rpb, scale, beyond)
    extra = () if additional_keys is None else (additional_keys, additional_values)
    op = _LARGE if prefers_large(call.spec, query.shape[-2]) else _ATTENTION
    part = None if neighborhood.is_plain else part
    return autodiff.attend(op, call, arrays, rpb, extra, part)


def call_of(
    launch: Callable[..., Arrays],
    platform: str | None,
    arrays: tuple[Array, Array, Array],
    neighborhood: Neighborhood,
    rpb: Array | None,
    scale: float,
    beyond: dict[str, Any],
) -> KernelCall:
    """The call that kernels are specialised for, if they take it.

    Args:
      launch: of the kernel of the op itself.
      platform: the only one on which to run kernels; None for any.
      arrays: queries or weights, keys and values; in the unfused ops one of these stands for both.
      neighborhood: which keys a query sees.
      rpb: relative position bias.
      scale: factor on the products of queries and keys.
      beyond: arguments that kernels do not have.
    """
    query, key, value = arrays
    is_unfused = launch != run.attention
    require_plain(NAME, neighborhood, beyond, parts=not is_unfused)
    spec = CallSpec(
        neighborhood=neighborhood,
        head_dim=key.shape[-1],
        value_dim=value.shape[-1],
        dtype=query.dtype.name,
        has_bias=rpb is not None,
    )
    require_support(spec, query.shape[-2], is_unfused=is_unfused)
    return KernelCall(
        launch=launch,
        platform=platform,
        spec=spec,
        scale=scale,
        groups=query.shape[-2] // key.shape[-2],
        interpret=device.is_interpreted(),
        splits=True,
        settings=(),
        with_table=frozenset(),
        placement=placement_of(query),
    )


def _attention(call: KernelCall, q: Array, k: Array, v: Array, *rest: Array) -> Arrays:
    layout = layout_of(call.spec, q.shape[2])
    plan, bias = plan_and_bias(call, layout, rest)
    signature = Signature((QUERY, KEY, KEY, PLAN, *(BIAS,) * len(bias)), (QUERY, _PER_QUERY))
    return wrapped(run.attention, call, layout, signature)(q, k, v, plan, *bias)


def _attention_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    q, k, v, *rest = arrays
    layout = layout_of(call.spec, q.shape[2])
    plan, bias = plan_and_bias(call, layout, rest)
    biases = (BIAS,) * len(bias)
    operands = (QUERY, KEY, KEY, QUERY, _PER_QUERY, PLAN, *biases)
    signature = Signature(operands, (QUERY, KEY, KEY, *biases))
    kernel = wrapped(run.attention_gradients, call, layout, signature)
    return typed(kernel(q, k, v, *cotangents, plan, *bias), arrays)


def plan_and_bias(call: KernelCall, layout: Layout, rest: Sequence[Array]) -> tuple[Array, Arrays]:
    """What kernels take besides maps: the plan of the part at hand; and the bias, as one of a set.

    Args:
      call: the call.
      layout: of its maps.
      rest: the bias, if there is one, and which part is at hand, if there are several.
    """
    bias, place = bias_and_place(call, rest)
    plans = jnp.asarray(layout.plan())
    # The layout of a single axis has another one in front.
    plan = plans[(0,) * (plans.ndim - 1 - len(place)) + place]
    return plan, bias


def bias_and_place(call: KernelCall, rest: Sequence[Array]) -> tuple[Arrays, Arrays]:
    """The bias as one of a set, if there is one; and along each axis the place of the part at hand,
    if there are several.
    """
    bias, part = rest[: call.spec.has_bias], rest[call.spec.has_bias :]
    return tuple(x[None] for x in bias), tuple(part[0]) if part else ()


def typed(gradients: Arrays, arrays: Arrays) -> Arrays:
    """Gradients of arrays, that of the bias without its set, in the dtypes of the arrays."""
    like = arrays[: len(gradients)]
    return tuple(dx.reshape(x.shape).astype(x.dtype) for dx, x in zip(gradients, like, strict=True))


def _large_attention(call: KernelCall, q: Array, k: Array, v: Array, *rest: Array) -> Arrays:
    walk = walks_of(call.spec, q.shape[2]).queries
    bias, place = bias_and_place(call, rest)
    signature = Signature((QUERY, KEY, KEY, *(BIAS,) * len(bias)), (QUERY, _PER_QUERY))
    return _run_walk(large.attention, call, walk, signature, place, q, k, v, *bias)


def _large_gradients(
    call: KernelCall, arrays: Arrays, results: Arrays, cotangents: Arrays
) -> Arrays:
    (q, k, v, *rest), (out, lse), (do, dlse) = arrays, results, cotangents
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    walks = walks_of(call.spec, q.shape[2])
    bias, place = bias_and_place(call, rest)
    biases = (BIAS,) * len(bias)
    operands = (QUERY, KEY, KEY, QUERY, _PER_QUERY, _PER_QUERY, *biases)
    given = (place, q, k, v, do, lse, delta, *bias)
    of_queries, of_keys = Signature(operands, (QUERY, *biases)), Signature(operands, (KEY, KEY))
    dq, *dbias = _run_walk(large.query_gradient, call, walks.queries, of_queries, *given)
    dk, dv = _run_walk(large.key_value_gradients, call, walks.keys, of_keys, *given)
    return typed((dq, dk, dv, *dbias), arrays)


def _run_walk(
    function: Callable[..., Arrays],
    call: KernelCall,
    walk: Walk,
    signature: Signature,
    place: Arrays,
    *arrays: Array,
) -> Arrays:
    """Run a launch on its arrays and the plan of its walk for the part at hand."""
    plan = walk.plan(place)
    signature = signature.taking(*((Dim.WHOLE,) * x.ndim for x in plan))
    return wrapped(function, call, walk, signature)(*arrays, *plan)


@functools.lru_cache(256)
def wrapped(
    function: Callable[..., Arrays], call: KernelCall, layout: Layout | Walk, signature: Signature
) -> Callable[..., Arrays]:
    """A launch that is vmapped, and mapped over devices."""
    assert call.placement is not None
    function = map_over_batch_and_heads(
        functools.partial(function, call, layout),
        signature,
        call.groups,
        call.placement,
        # Pallas' interpreter does not keep track of what varies.
        check_vma=not call.interpret,
    )
    return vmap_into_batch(function, signature)


_ATTENTION = Operation(_attention, _attention_gradients, autodiff.plain_attention)
_LARGE = Operation(_large_attention, _large_gradients, autodiff.plain_attention)
