"""The ops as a set of kernels: `jax.custom_vjp` over what a backend launches.

A backend has seven kernels (`natjax.kernels.spec.Kernel`), which take and return arrays of
``[B, T, N, D]``, tokens being one dimension. What every backend needs is here, once: which call a
kernel is specialised for, the tables of what is added to the logits, additional keys, and which
kernels compute the gradients of which.

Gradients are recomputed from the log-sum-exp: those of queries by programs that own queries, those
of keys and values by programs that own keys and walk over the queries that see them, and that of
the bias by summing blocks of one kind, then by bias. None of it needs atomic additions.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Dao et al., *FlashAttention*, 2022 (recomputation).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from natjax.kernels import device
from natjax.kernels.merge import merge_attentions
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.pattern import HIDDEN, pattern_of, table_entries
from natjax.kernels.sharding.operands import Dim, Dims, Signature
from natjax.kernels.sharding.partitioning import align_varying, split_over_batch_and_heads
from natjax.kernels.spec import CallSpec, Kernel, KernelBackend, KernelCall, Op, kernels_of
from natjax.kernels.tuning import settings

# Fused kernels have logits in units of log2(e), so that exp2 is all they need.
LOG2_E = math.log2(math.e)
# The most entries of a table of blocks for all heads, 256 MiB of float32.
_LARGEST_TABLE = 2**26
# Up to which a mask is laid out in a table too, rather than computed.
_SMALL_TABLE = 2**20

_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS, Dim.WHOLE)
_KEY = (Dim.BATCH, Dim.WHOLE, Dim.KV_HEADS, Dim.WHOLE)
_PER_QUERY = (Dim.BATCH, Dim.WHOLE, Dim.HEADS)
_VECTOR = (Dim.WHOLE,)
# Kinds of tiles, chunks, rows and columns; without a bias, one table is for all heads.
_BIAS_TABLE = (Dim.HEADS, *(Dim.WHOLE,) * 4)
_MASK_TABLE = (Dim.WHOLE,) * 5

_BACKWARD = (_QUERY, _KEY, _KEY, _QUERY, _PER_QUERY, _PER_QUERY)
# What each kernel takes, before a table, and returns. Weights are like queries, with window slots
# for the size of a head.
_SIGNATURES: dict[Kernel, Signature] = {
    # query, key, value -> output, log-sum-exp
    "forward": Signature((_QUERY, _KEY, _KEY), (_QUERY, _PER_QUERY)),
    # query, key, value, gradient of the output, log-sum-exp, delta -> gradients
    "dquery": Signature(_BACKWARD, (_QUERY,)),
    "dkeyvalue": Signature(_BACKWARD, (_KEY, _KEY)),
    # ... and the tiles in order of their kind, and where each kind begins -> blocks summed by kind
    "dbias": Signature(_BACKWARD, (_BIAS_TABLE,)),
    # query, key -> logits
    "qk": Signature((_QUERY, _KEY), (_QUERY,)),
    # weights, value -> output
    "av": Signature((_QUERY, _KEY), (_QUERY,)),
    # weights, what queries have -> its weighted sum over the queries of each key
    "av_transposed": Signature((_QUERY, _QUERY), (_KEY,)),
}


def attention(
    backend: KernelBackend,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.backends.reference.attention`; reverse mode once.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    call = _specialise(backend, "attention", query, key, value, neighborhood, rpb, scale)
    extra = () if additional_keys is None else (additional_keys, additional_values)
    with _reverse_mode_only():
        return _run_attention(call, (query, key, value), rpb, extra)


@functools.partial(jax.jit, static_argnums=0)
def _run_attention(
    call: KernelCall, arrays: tuple[Array, ...], rpb: Array | None, extra: tuple[Array, ...]
) -> tuple[Array, Array]:
    q, k, v, *bias = align_varying(*map(_flat, arrays), *_flat_bias(rpb))
    out, lse = _attention(call, q, k, v, *bias)
    if extra:
        parts = (out, lse), _attend_to_all(q, *extra, call)
        out, lse = merge_attentions(*zip(*parts, strict=True))
    shape = arrays[0].shape[:-1]
    return out.reshape(*shape, out.shape[-1]), lse.reshape(shape)


def qk(
    backend: KernelBackend,
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.backends.reference.qk`; reverse mode once.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    call = _specialise(backend, "qk", query, key, key, neighborhood, rpb, scale)
    with _reverse_mode_only():
        logits = _run_qk(call, _flat(query), _flat(key), *_flat_bias(rpb))
    return logits.reshape(*query.shape[:-1], neighborhood.num_neighbors)


def av(
    backend: KernelBackend,
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.backends.reference.av`; reverse mode once.

    Raises:
      NotImplementedError: the backend does not take the call.
    """
    call = _specialise(backend, "av", weights, value, value, neighborhood, None, 1.0)
    with _reverse_mode_only():
        out = _run_av(call, _flat(weights), _flat(value))
    return out.reshape(*weights.shape[:-1], value.shape[-1])


@contextlib.contextmanager
def _reverse_mode_only() -> Iterator[None]:
    """Say who has forward mode, where JAX notices it here and not later, compiling a caller."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(
            'kernels have no forward mode; use implementation="xla"'
        ) from error


def _flat(x: Array) -> Array:
    """Tokens as one dimension: ``[B, T, N, D]``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-2]), *x.shape[-2:])


def _flat_bias(rpb: Array | None) -> tuple[Array, ...]:
    return () if rpb is None else (rpb.reshape(rpb.shape[0], -1),)


# What is decided before anything is launched.


def _specialise(
    backend: KernelBackend,
    op: Op,
    query: Array,
    key: Array,
    value: Array,
    neighborhood: Neighborhood,
    rpb: Array | None,
    scale: float,
) -> KernelCall:
    """The call that kernels are specialised for, if the backend takes it."""
    spec = CallSpec(
        neighborhood=neighborhood,
        head_dim=key.shape[-1],
        value_dim=value.shape[-1],
        dtype=query.dtype.name,
        has_bias=rpb is not None,
    )
    backend.supports(op, spec, query.shape)
    kind = device.kind()
    chosen = tuple(
        (kernel, settings.resolve(backend, kernel, spec, kind)[0])
        for kernel in kernels_of(op, spec.has_bias)
    )
    call = KernelCall(
        launch=backend.launch,
        spec=spec,
        scale=scale,
        groups=query.shape[-2] // key.shape[-2],
        interpret=device.is_interpreted(),
        tf32=_allows_tf32(),
        settings=chosen,
        with_table=frozenset(),
    )
    return dataclasses.replace(call, with_table=_with_table(backend, call, query.shape[-2]))


def _allows_tf32() -> bool:
    """Whether float32 products may be rounded to TF32: JAX's own setting, off by default."""
    return jax.config.jax_default_matmul_precision in ("high", "tensorfloat32", "bfloat16_3x")


def _with_table(backend: KernelBackend, call: KernelCall, heads: int) -> frozenset[Kernel]:
    """The kernels that take a table: all that add a bias, and those whose mask makes a small one.

    "av" adds nothing to logits; "qk" does not store those that are hidden, so without a bias there
    is nothing to add.
    """
    has_bias = call.spec.has_bias
    adding = ("forward", "dquery", "dkeyvalue", "dbias", *(("qk",) if has_bias else ()))
    sizes = {
        kernel: table_entries(call.blocks(kernel))
        for kernel, _ in call.settings
        if kernel in adding
    }
    if has_bias and heads * max(sizes.values()) > _LARGEST_TABLE:
        raise NotImplementedError(
            f'implementation "{backend.NAME}" takes a relative position bias where a table of what '
            f"blocks look like, for all heads, has at most {_LARGEST_TABLE} entries; got "
            f"kernel_size={call.spec.neighborhood.kernel_size} and {heads} heads; use "
            'implementation="xla"'
        )
    return frozenset(k for k, size in sizes.items() if has_bias or size <= _SMALL_TABLE)


# Running kernels.


@functools.lru_cache(512)
def _op(call: KernelCall, kernel: Kernel, signature: Signature) -> Callable[..., Any]:
    """A launch as an op that is vmapped and partitioned."""
    function = functools.partial(call.launch, kernel, call)
    return split_over_batch_and_heads(function, signature, call.groups)


def _run(
    call: KernelCall,
    kernel: Kernel,
    arrays: tuple[Array, ...],
    rpb: tuple[Array, ...] = (),
    plan: tuple[Array, ...] | None = None,
) -> tuple[Array, ...]:
    """Run a kernel on its arrays and, if it takes one, the table made from the bias.

    Args:
      call: what the kernel is specialised for.
      kernel: which kernel.
      arrays: its arguments as `_SIGNATURES` has them.
      rpb: the bias, if any.
      plan: what the kernel takes with the table, in place of the kind of each tile.
    """
    signature = _SIGNATURES[kernel]
    if kernel in call.with_table:
        pattern = pattern_of(call.blocks(kernel))
        bias = rpb[0].reshape(-1, *call.spec.neighborhood.bias_shape) if rpb else None
        factor = 1.0 if kernel == "qk" else LOG2_E
        rest = (jnp.asarray(pattern.kind),) if plan is None else plan
        arrays = (*arrays, pattern.table(bias, HIDDEN, factor), *rest)
        table: Dims = _BIAS_TABLE if rpb else _MASK_TABLE
        signature = signature.taking(table, *(_VECTOR,) * len(rest))
    return _op(call, kernel, signature)(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: KernelCall, q: Array, k: Array, v: Array, *rpb: Array) -> tuple[Array, Array]:
    out, lse = _run(call, "forward", (q, k, v), rpb)
    return out, lse


def _attention_forward(call: KernelCall, q: Array, k: Array, v: Array, *rpb: Array) -> Any:
    out, lse = _attention(call, q, k, v, *rpb)
    return (out, lse), (q, k, v, rpb, out, lse)


def _attention_backward(call: KernelCall, residuals: Any, cotangents: Any) -> tuple[Array, ...]:
    q, k, v, rpb, out, lse = residuals
    do, dlse = cotangents
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    arrays = (q, k, v, do, lse, delta)
    run = functools.partial(_once, "na*d")
    (dq,) = run(functools.partial(_run, call, "dquery"))(arrays, rpb)
    dk, dv = run(functools.partial(_run, call, "dkeyvalue"))(arrays, rpb)
    if not rpb:
        return dq, dk, dv
    (sums,) = run(functools.partial(_run, call, "dbias"))(arrays, rpb, _dbias_plan(call))
    drpb = pattern_of(call.blocks("dbias")).bias_gradient(sums)
    return dq, dk, dv, drpb.reshape(rpb[0].shape).astype(rpb[0].dtype)


_attention.defvjp(_attention_forward, _attention_backward)


def _dbias_plan(call: KernelCall) -> tuple[Array, Array]:
    """Tiles sorted by kind, and where each kind begins."""
    kind = pattern_of(call.blocks("dbias")).kind
    order = np.argsort(kind, kind="stable")
    first = np.searchsorted(kind[order], np.arange(kind.max() + 2))
    return jnp.asarray(order, jnp.int32), jnp.asarray(first, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _qk(call: KernelCall, q: Array, k: Array, *rpb: Array) -> Array:
    (logits,) = _run(call, "qk", (q, k), rpb)
    return _fill_hidden(call, logits, -jnp.inf)


def _qk_forward(call: KernelCall, q: Array, k: Array, *rpb: Array) -> Any:
    return _qk(call, q, k, *rpb), (q, k, rpb)


def _qk_backward(call: KernelCall, residuals: Any, dlogits: Array) -> tuple[Array, ...]:
    q, k, rpb = residuals
    run = functools.partial(_once, "na*d_qk")
    (dq,) = run(functools.partial(_run, call, "av"))((dlogits, k))
    (dk,) = run(functools.partial(_run, call, "av_transposed"))((dlogits, q))
    if not rpb:
        return dq, dk
    return dq, dk, _qk_dbias(call, dlogits).reshape(rpb[0].shape).astype(rpb[0].dtype)


_qk.defvjp(_qk_forward, _qk_backward)


@functools.partial(jax.jit, static_argnums=0)
def _run_qk(call: KernelCall, *arrays: Array) -> Array:
    return _qk(call, *align_varying(*arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _av(call: KernelCall, w: Array, v: Array) -> Array:
    (out,) = _run(call, "av", (w, v))
    return out


def _av_forward(call: KernelCall, w: Array, v: Array) -> Any:
    return _av(call, w, v), (w, v)


def _av_backward(call: KernelCall, residuals: Any, do: Array) -> tuple[Array, Array]:
    w, v = residuals
    run = functools.partial(_once, "na*d_av")
    (dw,) = run(functools.partial(_run, call, "qk"))((do, v))
    (dv,) = run(functools.partial(_run, call, "av_transposed"))((w, do))
    return _fill_hidden(call, dw, 0.0), dv


_av.defvjp(_av_forward, _av_backward)


@functools.partial(jax.jit, static_argnums=0)
def _run_av(call: KernelCall, *arrays: Array) -> Array:
    return _av(call, *align_varying(*arrays))


def _once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is part of a derivative and has none of its own."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            f"kernels give first derivatives in reverse mode only; got a second "
            f'one of {name}; use implementation="xla"'
        )

    return guarded


def _visible_slots(neighborhood: Neighborhood) -> Array:
    """Which window slots of each query hold a key, ``[T, 1, K]``."""
    n = len(neighborhood.axes)
    masks = []
    for i, axis in enumerate(neighborhood.axes):
        query = jnp.arange(axis.length, dtype=jnp.int32)[:, None]
        mask = axis.slot_is_visible(query, jnp.arange(axis.kernel_size, dtype=jnp.int32)[None, :])
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = mask.shape
        masks.append(mask.reshape(shape))
    return functools.reduce(jnp.logical_and, masks).reshape(neighborhood.num_tokens, 1, -1)


def _fill_hidden(call: KernelCall, weights: Array, value: float) -> Array:
    """Set the empty slots of causal windows, which kernels leave as they are."""
    if not any(axis.is_causal for axis in call.spec.neighborhood.axes):
        return weights
    visible = _visible_slots(call.spec.neighborhood)
    return jnp.where(visible[None], weights, jnp.asarray(value, weights.dtype))


def _qk_dbias(call: KernelCall, dlogits: Float[Array, "B T N K"]) -> Float[Array, "N *R"]:
    """Sum over images, then over tokens and slots by bias, one axis at a time."""
    neighborhood = call.spec.neighborhood
    sums = _fill_hidden(call, dlogits, 0.0).astype(jnp.float32).sum(axis=0)
    x = sums.transpose(1, 0, 2).reshape(
        sums.shape[1], *neighborhood.shape, *neighborhood.kernel_size
    )
    for i, axis in enumerate(neighborhood.axes):
        # Tokens and slots of one axis go, its biases come last.
        query = np.arange(axis.length)[:, None]
        index = axis.bias_index(query, axis.neighbor(query, np.arange(axis.kernel_size)[None]))
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=jnp.float32)
        axes = ((1, 1 + len(neighborhood.axes) - i), (0, 1))
        x = jnp.tensordot(x, one_hot, axes=axes, precision="highest")
    return x


def _attend_to_all(
    q: Float[Array, "B T N D"],
    keys: Float[Array, "B E M D"],
    values: Float[Array, "B E M Dv"],
    call: KernelCall,
) -> tuple[Float[Array, "B T N Dv"], Float[Array, "B T N"]]:
    """Attention of every query to the additional keys, which are few; in plain JAX."""
    precision = None if call.tf32 else "highest"

    @jax.checkpoint
    def attend(q: Array, keys: Array, values: Array) -> tuple[Array, Array]:
        heads = keys.shape[2]
        grouped = q.reshape(*q.shape[:2], heads, q.shape[2] // heads, q.shape[-1])
        product = functools.partial(
            jnp.einsum, precision=precision, preferred_element_type=jnp.float32
        )
        logits = call.scale * product("btmgd,bemd->btmge", grouped, keys)
        lse = jax.nn.logsumexp(logits, axis=-1)
        probs = jnp.exp(logits - lse[..., None]).astype(values.dtype)
        out = product("btmge,bemd->btmgd", probs, values)
        out = out.reshape(*q.shape[:-1], values.shape[-1])
        return out.astype(q.dtype), lse.reshape(q.shape[:-1])

    return attend(q, keys, values)
