"""The unfused ops, with derivatives of any order, made of the kernels as the fused one is."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels import autodiff
from natjax.kernels.autodiff import Arrays, Operation
from natjax.kernels.backends.mosaic_tpu.layout import Layout
from natjax.kernels.backends.mosaic_tpu.memory import layout_of
from natjax.kernels.backends.mosaic_tpu.ops import BIAS, KEY, QUERY, call_of, wrapped
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
    `natjax.kernels.autodiff.qk`.

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
    signature = Signature((QUERY, KEY, *(BIAS,) * len(rpb)), (QUERY,))
    (logits,) = wrapped(run.qk, call, _layout(call, q), signature)(q, k, *rpb)
    return (fill_hidden(call.spec.neighborhood, logits, -jnp.inf),)


def _qk_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (q, k, *rpb), (dlogits,) = arrays, cotangents
    bias = (BIAS,) * len(rpb)
    signature = Signature((QUERY, KEY, QUERY, *bias), (QUERY, KEY, *bias))
    kernel = wrapped(run.qk_gradients, call, _layout(call, q), signature)
    gradients = kernel(q, k, fill_hidden(call.spec.neighborhood, dlogits, 0.0), *rpb)
    return tuple(dx.astype(x.dtype) for dx, x in zip(gradients, arrays, strict=True))


def _av(call: KernelCall, w: Array, v: Array) -> Arrays:
    kernel = wrapped(run.av, call, _layout(call, w), Signature((QUERY, KEY), (QUERY,)))
    return kernel(fill_hidden(call.spec.neighborhood, w, 0.0), v)


def _av_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (w, v), (do,) = arrays, cotangents
    signature = Signature((QUERY, KEY, QUERY), (QUERY, KEY))
    kernel = wrapped(run.av_gradients, call, _layout(call, w), signature)
    dw, dv = kernel(fill_hidden(call.spec.neighborhood, w, 0.0), v, do)
    return fill_hidden(call.spec.neighborhood, dw, 0.0), dv


def _layout(call: KernelCall, of_queries: Array) -> Layout:
    return layout_of(call.spec, of_queries.shape[2], is_unfused=True)


_QK = Operation(_qk, _qk_gradients, autodiff.plain_qk)
_AV = Operation(_av, _av_gradients, autodiff.plain_av)
