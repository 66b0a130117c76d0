"""An op with derivatives of any order in either mode, of kernels that have the first in one.

Kernels compute an op and its first derivative in reverse mode. Every other derivative, and every
platform but that of the kernels, is served by the implementation in plain JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from natjax.kernels import registry
from natjax.kernels.full_attention import attend_to_all
from natjax.kernels.linear import linear_call
from natjax.kernels.merge import merge_attentions
from natjax.kernels.sharding.one_device import on_one_device
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import KernelCall, Op

type Arrays = tuple[Array, ...]

# Fused kernels have logits in units of log2(e), so that exp2 is all they need.
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """An op between flat arrays, by kernels and in plain JAX.

    Attributes:
      kernels: ``(call, *arrays) -> results``.
      gradients: ``(call, arrays, results, cotangents) -> gradients``, by kernels too, of all
        arrays but integers, which come last.
      plain: ``(call, *arrays) -> results``, with all derivatives.
    """

    kernels: Callable[..., Arrays]
    gradients: Callable[[KernelCall, Arrays, Arrays, Arrays], Arrays]
    plain: Callable[..., Arrays]


@functools.partial(jax.jit, static_argnums=(0, 1))
def attend(
    op: Operation,
    call: KernelCall,
    arrays: Arrays,
    rpb: Array | None,
    extra: Arrays,
    part: Array | None = None,
) -> tuple[Array, Array]:
    """An op of queries, keys and values, with additional keys joined to what it gives.

    Args:
      op: gives the output and its log-sum-exp.
      call: what it is specialised for.
      arrays: queries, keys and values, tokens along their axes.
      rpb: relative position bias.
      extra: additional keys and their values, or nothing.
      part: which origin is in force along each axis, where there are several.
    """
    flat = align_varying(*map(_flat, arrays), *_flat_bias(rpb), *([] if part is None else [part]))
    out, lse = _apply(op, call, *flat)
    if extra:
        parts = (out, lse), attend_to_all(flat[0], *extra, scale=call.scale)
        out, lse = merge_attentions(*zip(*parts, strict=True))
    shape = arrays[0].shape[:-1]
    return out.reshape(*shape, out.shape[-1]), lse.reshape(shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def half(op: Operation, call: KernelCall, first: Array, second: Array, rpb: Array | None) -> Array:
    """An unfused op.

    Args:
      op: gives one result.
      call: what it is specialised for.
      first: queries, or weights, tokens along their axes.
      second: keys, or values.
      rpb: relative position bias.
    """
    flat = align_varying(_flat(first), _flat(second), *_flat_bias(rpb))
    (result,) = _apply(op, call, *flat)
    return result.reshape(*first.shape[:-1], result.shape[-1])


def _flat(x: Array) -> Array:
    """Tokens as one dimension: ``[B, T, N, D]``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-2]), *x.shape[-2:])


def _flat_bias(rpb: Array | None) -> Arrays:
    return () if rpb is None else (rpb.reshape(rpb.shape[0], -1),)


# Derivatives.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _apply(op: Operation, call: KernelCall, *arrays: Array) -> Arrays:
    kernels, plain = functools.partial(op.kernels, call), functools.partial(op.plain, call)
    return _by_platform(call, kernels, plain, *arrays)


def _tangent_rule(op: Operation, call: KernelCall, primals: Arrays, tangents: Any) -> Any:
    """Linear in the tangents: plain JAX in forward mode, kernels in reverse mode."""
    results = _apply(op, call, *primals)
    number = len(primals)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

    def push(constants: Arrays, tangents: Arrays) -> Arrays:
        def of_moving(*arrays: Array) -> Arrays:
            every = list(constants[:number])
            for i, array in zip(moving, arrays, strict=True):
                every[i] = array
            return op.plain(call, *every)

        return jax.jvp(of_moving, tuple(constants[i] for i in moving), tangents)[1]

    def pull(constants: Arrays, cotangents: Arrays) -> Arrays:
        gradients = _gradients(op, call, constants[:number], constants[number:], cotangents)
        return tuple(gradients[i] for i in moving)

    moved = linear_call(
        push, pull, (*primals, *results), [tangents[i] for i in moving], like=results
    )
    return results, moved


_apply.defjvp(_tangent_rule, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(
    op: Operation, call: KernelCall, arrays: Arrays, results: Arrays, cotangents: Arrays
) -> Arrays:
    kernels = functools.partial(op.gradients, call)
    plain = lambda arrays, _, cotangents: _plain_gradients(op, call, arrays, cotangents)  # noqa: E731
    return _by_platform(call, kernels, plain, arrays, results, cotangents)


@_gradients.defjvp
def _second_derivative(op: Operation, call: KernelCall, primals: Any, tangents: Any) -> Any:
    """In plain JAX. What the results contribute is part of what their arguments do."""
    plain = functools.partial(_plain_gradients, op, call)
    _, moved = jax.jvp(plain, (primals[0], primals[2]), (tangents[0], tangents[2]))
    return _gradients(op, call, *primals), moved


def _plain_gradients(op: Operation, call: KernelCall, arrays: Arrays, cotangents: Arrays) -> Arrays:
    moving = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    integers = arrays[len(moving) :]
    return jax.vjp(lambda *moving: op.plain(call, *moving, *integers), *moving)[1](cotangents)


def _by_platform(
    call: KernelCall, kernels: Callable[..., Arrays], plain: Callable[..., Arrays], *args: Any
) -> Arrays:
    """Kernels on their platform and plain JAX elsewhere, known when the program is lowered."""
    if call.platform is None:
        return kernels(*args)
    if call.placement is not None and call.placement.mesh is None:
        # Nobody partitions them, and of several devices nothing is known.
        kernels = functools.partial(on_one_device, kernels, plain)
    return jax.lax.platform_dependent(*args, default=plain, **{call.platform: kernels})


# The same in plain JAX.


def _plain(op: Op, call: KernelCall, arrays: Arrays, *rpb: Array, **options: Any) -> Arrays:
    """An op on flat arrays by the implementation in plain JAX, its results flat again."""
    neighborhood = call.spec.neighborhood
    tokens = neighborhood.query_shape, *(neighborhood.key_shape,) * (len(arrays) - 1)
    laid_out = [
        x.reshape(x.shape[0], *shape, *x.shape[2:]) for x, shape in zip(arrays, tokens, strict=True)
    ]
    if op != "av":
        bias = rpb[0].reshape(-1, *neighborhood.bias_shape) if rpb else None
        options |= {"rpb": bias, "scale": call.scale}
    results = registry.plain(op)(*laid_out, neighborhood, **options)
    flat = arrays[0].shape[:2]
    keep = 1 + len(neighborhood.axes)
    return tuple(x.reshape(*flat, *x.shape[keep:]) for x in jax.tree.leaves(results))


def plain_attention(call: KernelCall, q: Array, k: Array, v: Array, *rest: Array) -> Arrays:
    """Attention on flat arrays in plain JAX."""
    rpb, part = rest[: call.spec.has_bias], rest[call.spec.has_bias :]
    options = {
        "additional_keys": None,
        "additional_values": None,
        "part": part[0] if part else None,
    }
    return _plain("attention", call, (q, k, v), *rpb, **options)


def plain_qk(call: KernelCall, q: Array, k: Array, *rpb: Array) -> Arrays:
    """Logits of flat arrays in plain JAX."""
    return _plain("qk", call, (q, k), *rpb)


def plain_av(call: KernelCall, w: Array, v: Array) -> Arrays:
    """Weighted sums of flat arrays in plain JAX."""
    return _plain("av", call, (w, v))
