"""Batches of an opaque function: larger ones under `jax.vmap`, and parts of those too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from natjax.kernels.sharding.operands import Dim, Signature


def vmap_into_batch(function: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    """Give a function a rule for `jax.vmap`: call it once, on a batch that is larger.

    Where there are sets of images, those of each entry of the vmapped axis are sets of their own.
    Where an argument that has neither batch nor sets is vmapped, or a result has neither, the
    function runs once for each entry, one after the other.
    """
    wrapped = custom_vmap(function)
    operands = signature.operands

    @wrapped.def_vmap
    def rule(size: int, batched: list[bool], *args: jax.Array) -> Any:
        shared = [x for x, dims in zip(batched, operands, strict=True) if not _is_apart(dims)]
        if any(shared) or not all(map(_is_apart, signature.results)):
            # What they do not share cannot be told apart in a batch.
            out = _one_by_one(wrapped, batched, args)
        else:
            has_sets = _has_sets(signature, batched, args)
            merged = [
                _merge(x, size, is_batched)
                if Dim.BATCH in dims or (has_sets and Dim.SETS in dims)
                else x
                for x, is_batched, dims in zip(args, batched, operands, strict=True)
            ]
            out = tuple(x.reshape(size, -1, *x.shape[1:]) for x in wrapped(*merged))
        return out, (True,) * len(signature.results)

    return wrapped


def _is_apart(dims: tuple[Dim, ...]) -> bool:
    """Whether entries of a vmapped axis can be told apart in an array."""
    return Dim.BATCH in dims or Dim.SETS in dims


def _has_sets(signature: Signature, batched: Sequence[bool], args: Sequence[jax.Array]) -> bool:
    """Whether the entries of a vmapped axis must be sets: one set is for all of them otherwise."""
    of_arguments = (
        is_batched or x.shape[0] > 1
        for x, is_batched, dims in zip(args, batched, signature.operands, strict=True)
        if Dim.SETS in dims
    )
    return any(of_arguments) or any(Dim.SETS in dims for dims in signature.results)


def _one_by_one(
    function: Callable[..., Any], batched: Sequence[bool], args: Sequence[jax.Array]
) -> Any:
    moving = tuple(x for x, is_batched in zip(args, batched, strict=True) if is_batched)

    def call(current: tuple[jax.Array, ...]) -> Any:
        rest = iter(current)
        return function(
            *(next(rest) if is_batched else x for x, is_batched in zip(args, batched, strict=True))
        )

    return jax.lax.map(call, moving)


def _merge(x: jax.Array, size: int, is_batched: bool) -> jax.Array:
    """Make the vmapped axis, in front, part of the batch."""
    if not is_batched:
        x = jnp.broadcast_to(x[None], (size, *x.shape))
    return x.reshape(-1, *x.shape[2:])


def in_indexable_parts(
    function: Callable[..., Any], signature: Signature, limit: int
) -> Callable[..., Any]:
    """Call a function on as few equal parts of the batch, one after the other, as it can index.

    Here shapes are those at hand, of one device and with whatever `jax.vmap` has made of the batch.

    Args:
      function: numbers the rows of its arrays, and each entry of those with window slots.
      signature: dimensions of its arguments and results.
      limit: what the numbers must be below.
    """

    def run(*arrays: jax.Array) -> Any:
        batch = arrays[0].shape[0]
        entries = max(map(_entries, arrays, signature.operands))
        divisors = (n for n in range(1, batch + 1) if batch % n == 0)
        parts = next((n for n in divisors if entries // n < limit), batch)
        if parts <= 1:
            return function(*arrays)
        split = [
            x.reshape(parts, -1, *x.shape[1:]) if Dim.BATCH in dims else x
            for x, dims in zip(arrays, signature.operands, strict=True)
        ]
        moving = [Dim.BATCH in dims for dims in signature.operands]
        return tuple(
            x.reshape(batch, *x.shape[2:]) if Dim.BATCH in dims else x.sum(axis=0)
            for x, dims in zip(_one_by_one(function, moving, split), signature.results, strict=True)
        )

    return run


def _entries(x: jax.Array, dims: tuple[Dim, ...]) -> int:
    """What a function numbers of an array: its rows, or all of it."""
    return x.size if dims[-1] is Dim.SLOTS else math.prod(x.shape[: len(dims) - 1])
