"""Queries on a finer grid than keys, without a word to implementations.

Queries that lie on one key token have the same window. So they are as good as more query heads that
share a key head, and an op with several queries a key is the same op with one query a key and more
heads.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.weighting import Dropout


def with_more_heads(op: Callable[..., Any]) -> Callable[..., Any]:
    """Give an op of one query a key token those with any ``query_ratio``.

    Args:
      op: ``(first, *arrays, neighborhood, **options) -> results``, where the first array and all
        results are ``[B, *X, N, ...]`` by query, and heads of options are those of ``rpb`` and
        ``dropout``.
    """

    @functools.wraps(op)
    def run(first: Array, *rest: Any, **options: Any) -> Any:
        *arrays, neighborhood = rest
        ratio = tuple(axis.query_ratio for axis in neighborhood.axes)
        if math.prod(ratio) == 1:
            return op(first, *rest, **options)
        if options.get("rpb") is not None:
            options["rpb"] = jnp.repeat(options["rpb"], math.prod(ratio), axis=0)
        if options.get("dropout") is not None:
            options["dropout"] = _fold_dropout(options["dropout"], ratio, neighborhood)
        axes = tuple(map(_fold_axis, neighborhood.axes))
        results = op(_fold(first, ratio), *arrays, Neighborhood(axes), **options)
        if isinstance(results, tuple):
            return tuple(_unfold(x, ratio) for x in results)
        return _unfold(results, ratio)

    return run


def _fold_axis(axis: AxisWindow) -> AxisWindow:
    first, stop = axis.query_range
    queries = (first // axis.query_ratio, stop // axis.query_ratio)
    return dataclasses.replace(
        axis, query_ratio=1, queries=None if axis.queries is None else queries
    )


def _fold(x: Float[Array, "B *X N C"], ratio: tuple[int, ...]) -> Float[Array, "B *Y NR C"]:
    """The queries of a key token as heads, those of one head together."""
    n = len(ratio)
    sizes = [size for count, r in zip(x.shape[1:], ratio, strict=False) for size in (count // r, r)]
    x = x.reshape(x.shape[0], *sizes, *x.shape[n + 1 :])
    tokens, parts = range(1, 2 * n + 1, 2), range(2, 2 * n + 1, 2)
    x = x.transpose(0, *tokens, 2 * n + 1, *parts, 2 * n + 2)
    return x.reshape(*x.shape[: n + 1], math.prod(x.shape[n + 1 : -1]), x.shape[-1])


def _unfold(x: Float[Array, "B *Y NR *C"], ratio: tuple[int, ...]) -> Float[Array, "B *X N *C"]:
    """Inverse of `_fold`."""
    n = len(ratio)
    heads = x.shape[n + 1] // math.prod(ratio)
    tokens = [count * r for count, r in zip(x.shape[1:], ratio, strict=False)]
    shape = (x.shape[0], *tokens, heads, *x.shape[n + 2 :])
    x = x.reshape(*x.shape[: n + 1], heads, *ratio, *x.shape[n + 2 :])
    pairs = (axis for j in range(n) for axis in (1 + j, n + 2 + j))
    return x.transpose(0, *pairs, n + 1, *range(2 * n + 2, x.ndim)).reshape(shape)


def _fold_dropout(dropout: Dropout, ratio: tuple[int, ...], neighborhood: Neighborhood) -> Dropout:
    """Seeds to which the numbers of queries add up as they do before (`token_numbers`)."""
    parts = math.prod(ratio)
    more = jnp.arange(parts, dtype=jnp.uint32) * jnp.uint32(neighborhood.num_tokens)
    first, second = (dropout.seeds[..., i, None] for i in range(2))
    first = first + more[None, None]
    seeds = jnp.stack([first, jnp.broadcast_to(second, first.shape)], axis=-1)
    seeds = seeds.reshape(seeds.shape[0], seeds.shape[1] * parts, 2)
    return dataclasses.replace(dropout, seeds=seeds)
