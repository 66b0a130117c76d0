"""The ops as sets of kernels.

A backend has seven kernels (`natjax.kernels.spec.Kernel`), which take and return arrays of
``[B, T, N, D]``, tokens being one dimension. What every backend needs is here, once: the tables of
what is added to the logits, and which kernels compute the gradients of which.

Gradients are recomputed from the log-sum-exp: those of queries by programs that own queries, which
also make the delta that the others take; those of keys and values by programs that own keys and
walk over the queries that see them; and that of the bias by summing blocks of one kind, then by
bias. None of it needs atomic additions.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Dao et al., *FlashAttention*, 2022 (recomputation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from natjax.kernels.autodiff import (
    LOG2_E,
    Arrays,
    Operation,
    attend,
    half,
    plain_attention,
    plain_av,
    plain_qk,
)
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.pattern import HIDDEN, pattern_of
from natjax.kernels.plan.reach import reach_of
from natjax.kernels.plan.shares import tiles_by_kind, tiles_in_shares
from natjax.kernels.plan.slots import fill_hidden, sum_by_bias
from natjax.kernels.sharding.batching import in_indexable_parts, vmap_into_batch
from natjax.kernels.sharding.operands import Dim, Dims, Signature
from natjax.kernels.sharding.partitioning import split_over_batch_and_heads
from natjax.kernels.spec import Kernel, KernelBackend, KernelCall
from natjax.kernels.specialise import INDEXABLE, require_plain, specialise

_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS, Dim.WHOLE)
_KEY = (Dim.BATCH, Dim.WHOLE, Dim.KV_HEADS, Dim.WHOLE)
_PER_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS)
_WEIGHTS = (Dim.BATCH, Dim.WHOLE, Dim.HEADS, Dim.SLOTS)
_VECTOR = (Dim.WHOLE,)
# Tiles, axes, and the first chunk and their number: `natjax.kernels.plan.reach`.
_REACH = (Dim.WHOLE,) * 3
# Kinds of tiles, chunks, rows and columns; without a bias, one table is for all heads.
_BIAS_TABLE = (Dim.HEADS, *(Dim.WHOLE,) * 4)
_MASK_TABLE = (Dim.WHOLE,) * 5

_BACKWARD = (_QUERY, _KEY, _KEY, _QUERY, _PER_QUERY, _PER_QUERY)
_DQUERY = (_QUERY, _KEY, _KEY, _QUERY, _QUERY, _PER_QUERY, _PER_QUERY)
# What each kernel takes, before what `_run` adds, and returns. Products of queries and keys, and
# what "av" and "av_transposed" sum, which are the gradients of those, are times the call's scale.
_SIGNATURES: dict[Kernel, Signature] = {
    # query, key, value -> output, log-sum-exp
    "forward": Signature((_QUERY, _KEY, _KEY), (_QUERY, _PER_QUERY)),
    # query, key, value, output and its gradient, log-sum-exp and its gradient -> gradient, delta.
    # Where it sums the gradient of the bias, also what `plan.shares` has -> blocks by kind
    "dquery": Signature(_DQUERY, (_QUERY, _PER_QUERY)),
    # query, key, value, gradient of the output, log-sum-exp, delta -> gradients
    "dkeyvalue": Signature(_BACKWARD, (_KEY, _KEY)),
    # ... and the tiles in order of their kind, and where each kind begins -> blocks summed by kind
    "dbias": Signature(_BACKWARD, (_BIAS_TABLE,)),
    # query, key -> logits
    "qk": Signature((_QUERY, _KEY), (_WEIGHTS,)),
    # weights, value -> output
    "av": Signature((_WEIGHTS, _KEY), (_QUERY,)),
    # weights, what queries have -> its weighted sum over the queries of each key
    "av_transposed": Signature((_WEIGHTS, _QUERY), (_KEY,)),
}


def attention(
    backend: KernelBackend,
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
    """See `natjax.kernels.backends.reference.attention`.

    Args:
      backend: whose kernels.
      platform: the only one, as JAX lowers for it, on which to run kernels; None for any.
      query: queries.
      key: keys.
      value: values.
      neighborhood: which keys a query sees.
      rpb: relative position bias.
      scale: factor on the products of queries and keys.
      additional_keys: keys that every query sees, which are few.
      additional_values: their values.
      **beyond: arguments that kernels do not have, and that must be None.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    require_plain(backend.NAME, neighborhood, beyond)
    call = specialise(backend, "attention", platform, query, key, value, neighborhood, rpb, scale)
    extra = () if additional_keys is None else (additional_keys, additional_values)
    return attend(_ATTENTION, call, (query, key, value), rpb, extra)


def qk(
    backend: KernelBackend,
    platform: str | None,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    **beyond: Any,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.backends.reference.qk`; other arguments are as in `attention`.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    require_plain(backend.NAME, neighborhood, beyond)
    call = specialise(backend, "qk", platform, query, key, key, neighborhood, rpb, scale)
    return half(_QK, call, query, key, rpb)


def av(
    backend: KernelBackend,
    platform: str | None,
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
    **beyond: Any,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.backends.reference.av`; other arguments are as in `attention`.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    require_plain(backend.NAME, neighborhood, beyond)
    call = specialise(backend, "av", platform, weights, value, value, neighborhood, None, 1.0)
    return half(_AV, call, weights, value, None)


@functools.lru_cache(512)
def _launch(call: KernelCall, kernel: Kernel, signature: Signature) -> Callable[..., Arrays]:
    """A launch that is vmapped and partitioned."""
    function = functools.partial(call.launch, kernel, call)
    slots = call.spec.neighborhood.num_neighbors if kernel == "qk" else 1
    function = in_indexable_parts(function, signature, INDEXABLE // slots)
    if not call.splits:
        return vmap_into_batch(function, signature)
    return split_over_batch_and_heads(function, signature, call.groups)


def _run(
    call: KernelCall,
    kernel: Kernel,
    arrays: Arrays,
    rpb: Arrays = (),
    plan: tuple[np.ndarray, ...] | None = None,
) -> Arrays:
    """Run a kernel on its arrays, the table made from the bias if it takes one, and its plan.

    The arrays are those of `_SIGNATURES`. The plan is by default the kind of each tile, where there
    is a table, and which chunks each tile meets.
    """
    signature, blocks = _SIGNATURES[kernel], call.blocks(kernel)
    if kernel == "dquery" and call.sums_bias:
        signature = signature.giving(_BIAS_TABLE)
    if kernel in call.with_table:
        pattern = pattern_of(blocks)
        bias = rpb[0].reshape(-1, *call.spec.neighborhood.bias_shape) if rpb else None
        factor = 1.0 if kernel == "qk" else LOG2_E
        rest = tuple(map(jnp.asarray, (pattern.kind,) if plan is None else plan))
        arrays = (*arrays, pattern.table(bias, HIDDEN, factor), *rest)
        table: Dims = _BIAS_TABLE if rpb else _MASK_TABLE
        signature = signature.taking(table, *(_VECTOR,) * len(rest))
    if plan is None:
        arrays = (*arrays, jnp.asarray(reach_of(blocks)))
        signature = signature.taking(_REACH)
    return _launch(call, kernel, signature)(*arrays)


def _attention(call: KernelCall, q: Array, k: Array, v: Array, *rpb: Array) -> Arrays:
    return _run(call, "forward", (q, k, v), rpb)


def _attention_gradients(
    call: KernelCall, arrays: Arrays, results: Arrays, cotangents: Arrays
) -> Arrays:
    """Delta is what is taken from the gradients of weights to make them those of logits."""
    (q, k, v, *rpb), (out, lse), (do, dlse) = arrays, results, cotangents
    run = functools.partial(_run, call, rpb=tuple(rpb))
    shares = tiles_in_shares(call.blocks("dquery")) if call.sums_bias else None
    dq, delta, *sums = run("dquery", (q, k, v, out, do, lse, dlse), plan=shares)
    backward = (q, k, v, do, lse, delta)
    dk, dv = run("dkeyvalue", backward)
    if not rpb:
        return dq, dk, dv
    if not sums:
        sums = run("dbias", backward, plan=tiles_by_kind(call.blocks("dbias")))
    blocks = call.blocks("dquery" if call.sums_bias else "dbias")
    drpb = pattern_of(blocks).bias_gradient(*sums)
    return dq, dk, dv, drpb.reshape(rpb[0].shape).astype(rpb[0].dtype)


def _qk(call: KernelCall, q: Array, k: Array, *rpb: Array) -> Arrays:
    (logits,) = _run(call, "qk", (q, k), rpb)
    return (fill_hidden(call.spec.neighborhood, logits, -jnp.inf),)


def _qk_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (q, k, *rpb), (dlogits,) = arrays, cotangents
    (dq,) = _run(call, "av", (dlogits, k))
    (dk,) = _run(call, "av_transposed", (dlogits, q))
    if not rpb:
        return dq, dk
    drpb = sum_by_bias(call.spec.neighborhood, dlogits)
    return dq, dk, drpb.reshape(rpb[0].shape).astype(rpb[0].dtype)


def _av(call: KernelCall, w: Array, v: Array) -> Arrays:
    return _run(call, "av", (w, v))


def _av_gradients(call: KernelCall, arrays: Arrays, _: Arrays, cotangents: Arrays) -> Arrays:
    (w, v), (do,) = arrays, cotangents
    (dw,), (dv,) = _run(call, "qk", (do, v)), _run(call, "av_transposed", (w, do))
    return fill_hidden(call.spec.neighborhood, dw, 0.0), dv


_ATTENTION = Operation(_attention, _attention_gradients, plain_attention)
_QK = Operation(_qk, _qk_gradients, plain_qk)
_AV = Operation(_av, _av_gradients, plain_av)
