"""The unfused ops, with derivatives of any order, made of the kernels as the fused one is."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels import autodiff
from natjax.kernels.autodiff import Arrays, Operation
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import layout_of
from natjax.kernels.backends.mosaic_tpu.ops import (
    BIAS,
    KEY,
    PLAN,
    QUERY,
    call_of,
    plan_and_bias,
    typed,
    wrapped,
)
from natjax.kernels.backends.mosaic_tpu.unfused import run
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.slots import fill_hidden
from natjax.kernels.sharding.operands import Signature
from natjax.kernels.spec import KernelCall


def qk(
    platform: str | None,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    **beyond: Any,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.backends.reference.qk`; ``platform`` and ``beyond`` are as in
    `natjax.kernels.kernel_ops.qk`.

    Raises:
      NotImplementedError: the kernels do not take the call.
    """
    call = call_of(run.qk, platform, (query, key, key), neighborhood, rpb, scale, beyond)
    return autodiff.half(_QK, call, query, key, rpb)


def av(
    platform: str | None,
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
    **beyond: Any,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.backends.reference.av`; other arguments are as in `qk`.

    Raises:
      NotImplementedError: the kernels do not take the call.
    """
    call = call_of(run.av, platform, (weights, value, value), neighborhood, None, 1.0, beyond)
    return autodiff.half(_AV, call, weights, value, None)


def _qk(call: KernelCall, q: Array, k: Array, *rpb: Array) -> Arrays:
    layout = _layout(call, q)
    plan, bias = plan_and_bias(call, layout, rpb)
    signature = Signature((QUERY, KEY, PLAN, *(BIAS,) * len(bias)), (QUERY,))
    (logits,) = wrapped(run.qk, call, layout, signature)(q, k, plan, *bias)
    return (fill_hidden(call.spec.neighborhood, logits, -jnp.inf),)


def _qk_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (q, k, *rpb), (dlogits,) = arrays, cotangents
    layout = _layout(call, q)
    plan, bias = plan_and_bias(call, layout, rpb)
    biases = (BIAS,) * len(bias)
    signature = Signature((QUERY, KEY, QUERY, PLAN, *biases), (QUERY, KEY, *biases))
    kernel = wrapped(run.qk_gradients, call, layout, signature)
    dlogits = fill_hidden(call.spec.neighborhood, dlogits, 0.0)
    return typed(kernel(q, k, dlogits, plan, *bias), arrays)


def _av(call: KernelCall, w: Array, v: Array) -> Arrays:
    layout = _layout(call, w)
    plan, _ = plan_and_bias(call, layout, ())
    kernel = wrapped(run.av, call, layout, Signature((QUERY, KEY, PLAN), (QUERY,)))
    return kernel(fill_hidden(call.spec.neighborhood, w, 0.0), v, plan)


def _av_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (w, v), (do,) = arrays, cotangents
    layout = _layout(call, w)
    plan, _ = plan_and_bias(call, layout, ())
    signature = Signature((QUERY, KEY, QUERY, PLAN), (QUERY, KEY))
    kernel = wrapped(run.av_gradients, call, layout, signature)
    dw, dv = kernel(fill_hidden(call.spec.neighborhood, w, 0.0), v, do, plan)
    return fill_hidden(call.spec.neighborhood, dw, 0.0), dv


def _layout(call: KernelCall, of_queries: Array) -> Layout:
    return layout_of(call.spec, of_queries.shape[2], is_unfused=True)


_QK = Operation(_qk, _qk_gradients, autodiff.plain_qk)
_AV = Operation(_av, _av_gradients, autodiff.plain_av)
