"""The kernels: forward, gradients of queries, and gradients of keys and values.

Logits are in units of log2(e), so that exp2 is all they need. Nothing is added up but by the one
program that owns a tile, in the order of its chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_tpu.large.chunk import Step, as_row
from natjax.kernels.backends.mosaic_tpu.layout import LANES
from natjax.kernels.backends.mosaic_tpu.program import PLAIN, ROWS_BY_ROWS, product
from natjax.kernels.plan.pattern import HIDDEN

type Ref = Any

# Columns of a chunk that have their exponentials at once, at most.
_PART = 512


def forward(
    step: Step,
    query: Ref,
    key: Ref,
    value: Ref,
    out: Ref,
    lse: Ref,
    sums: Ref,
    top: Ref,
    total: Ref,
) -> None:
    """The output of a tile of queries and its log-sum-exp, by an online softmax over chunks.

    Args:
      step: a tile of queries, and a chunk of keys.
      query: the tile, ``[*tile, lanes]``.
      key: the chunk, ``[1, 1, *chunk, lanes]``.
      value: as ``key``.
      out: as ``query``.
      lse: ``[heads, tiles, rows]``.
      sums: weighted values so far, ``[rows, lanes]``; scratch memory.
      top: the largest logit so far, ``[heads, rows, 128]``, lanes alike.
      total: the sum of weights so far, in 128 parts.
    """

    def begin() -> None:
        sums[...] = jnp.zeros_like(sums)
        top[...] = jnp.full_like(top, HIDDEN)
        total[...] = jnp.zeros_like(total)

    def body(is_masked: bool) -> None:
        q, k, v = step.rows_of(query), step.columns_of(key), step.columns_of(value)
        parts = step.parts(_PART)

        def of_head(head: Any) -> None:
            own = step.own(head, q)

            def logits(part: slice) -> jax.Array:
                return step.logits(head, own, k, part, is_masked=is_masked)

            before, weight, added = top[head], total[head], sums[...]
            for part, x in _ahead(parts, logits):
                now = jnp.maximum(before, x.max(axis=1, keepdims=True))
                # 1 where all is hidden that a query might see; then nothing that was or will be.
                shrink = jnp.exp2(before - now)
                w = jnp.exp2(x - _wide(now, x))
                weight = weight * shrink + _in_lanes(w)
                values = product(w.astype(v.dtype), v[part], PLAIN)
                before, added = now, added * shrink[:, : step.walk.lanes] + values
            top[head], total[head] = before, weight
            sums[...] = step.select(head, added, sums[...])

        step.each_head(of_head)

    def end() -> None:
        result = sums[...]
        for head in range(step.walk.heads):
            weight = total[head].sum(axis=1, keepdims=True)
            result = step.select(head, result * (1 / weight), result)
            column = (top[head][:, :1] + jnp.log2(weight)) * (1 / LOG2_E)
            lse[head, pl.ds(step.tile, 1), :] = as_row(column)
        out[...] = result.astype(out.dtype).reshape(out.shape)

    step.run(begin, body, end)


def dquery(
    step: Step,
    query: Ref,
    key: Ref,
    value: Ref,
    dout: Ref,
    statistics: Ref,
    dq: Ref,
    *refs: Ref,
) -> None:
    """The gradient of a tile of queries.

    Args:
      step: a tile of queries, and a chunk of keys.
      query: the tile.
      key: the chunk.
      value: as ``key``.
      dout: gradient of the output, as ``query``.
      statistics: of each query, its log-sum-exp times log2(e) and the weighted sum of the gradients
        of its weights: ``[*tile, 128]``.
      dq: the gradient, as ``query``.
      *refs: with biases, the gradient of their table, over all tiles and the images
        of a set; and scratch memory: the gradient so far, ``[rows, lanes]``, and either of the
        statistics, ``[heads, rows, 128]``, lanes alike.
    """
    *dtable, sums, lse, delta = refs
    for table in dtable:
        _zero_at_first_of_set(step, table)

    def begin() -> None:
        sums[...] = jnp.zeros_like(sums)
        for head in range(step.walk.heads):
            for column, x in zip((lse, delta), step.rows_in(statistics, head), strict=True):
                column[head] = jnp.broadcast_to(x, column.shape[1:])

    def body(is_masked: bool) -> None:
        q, do = step.rows_of(query), step.rows_of(dout)
        k, v = step.columns_of(key), step.columns_of(value)
        parts = step.parts(_PART)

        def of_head(head: Any) -> None:
            own_q, own_do = step.own(head, q), step.own(head, do)

            def products(part: slice) -> tuple[jax.Array, jax.Array]:
                x = step.logits(head, own_q, k, part, is_masked=is_masked)
                return x, product(own_do, v[part], ROWS_BY_ROWS)

            for part, (x, dw) in _ahead(parts, products):
                w = jnp.exp2(x - _wide(lse[head], x))
                dx = w * (dw - _wide(delta[head], x))
                sums[...] += step.own(head, product(dx.astype(k.dtype), k[part], PLAIN))
                for table in dtable:
                    # Rows that do not exist have nan.
                    seen = step.hide(dx, part, 0.0) if is_masked else dx
                    step.add_by_bias(table, head, seen, part)

        step.each_head(of_head)

    def end() -> None:
        dq[...] = (sums[...] * step.scale).astype(dq.dtype).reshape(dq.shape)

    step.run(begin, body, end)


def dkeyvalue(
    step: Step,
    query: Ref,
    key: Ref,
    value: Ref,
    dout: Ref,
    statistics: Ref,
    dk: Ref,
    dv: Ref,
    key_sums: Ref,
    value_sums: Ref,
) -> None:
    """The gradients of a tile of keys and their values.

    Args:
      step: a tile of keys, and a chunk of queries.
      query: the chunk.
      key: the tile.
      value: as ``key``.
      dout: gradient of the output, as ``query``.
      statistics: as in `dquery`, of the chunk.
      dk: gradient of keys, as ``key``.
      dv: gradient of values, as ``key``.
      key_sums: gradient of keys so far, ``[rows, lanes]``; scratch memory.
      value_sums: as ``key_sums``.
    """

    def begin() -> None:
        for sums in (key_sums, value_sums):
            sums[...] = jnp.zeros_like(sums)

    def body(is_masked: bool) -> None:
        q, do = step.columns_of(query), step.columns_of(dout)
        k, v = step.rows_of(key), step.rows_of(value)
        # In parts it would take more on a v5e, and as much on a v6e.
        part = slice(0, step.walk.num_columns)

        def of_head(head: Any) -> None:
            lse, delta = step.columns_in(statistics, head)
            x = step.logits(head, step.own(head, k), q, part, is_masked=is_masked)
            w = jnp.exp2(x - lse)
            dw = product(step.own(head, v), do, ROWS_BY_ROWS)
            dx = w * (dw - delta)
            value_sums[...] += step.own(head, product(w.astype(do.dtype), do, PLAIN))
            key_sums[...] += step.own(head, product(dx.astype(q.dtype), q, PLAIN))

        step.each_head(of_head)

    def end() -> None:
        dk[...] = (key_sums[...] * step.scale).astype(dk.dtype).reshape(dk.shape)
        dv[...] = value_sums[...].astype(dv.dtype).reshape(dv.shape)

    step.run(begin, body, end)


def _ahead[X](parts: Sequence[slice], first: Callable[[slice], X]) -> Iterator[tuple[slice, X]]:
    """Each part with what a function makes of it, which is made one part ahead.

    So products of the next part fill the time in which this one has its exponentials.
    """
    following = first(parts[0])
    for part, after in itertools.zip_longest(parts, parts[1:]):
        x = following
        if after is not None:
            following = first(after)
        yield part, x


def _zero_at_first_of_set(step: Step, ref: Ref) -> None:
    @pl.when(step.is_first_of_set)
    def zero() -> None:
        ref[...] = jnp.zeros_like(ref)


def _wide(x: jax.Array, like: jax.Array) -> jax.Array:
    """``[rows, 128]``, lanes alike, as wide as another; a single lane would have to be spread."""
    copies = like.shape[1] // LANES
    return jnp.concatenate([x] * copies, axis=1) if copies > 1 else x


def _in_lanes(x: jax.Array) -> jax.Array:
    """Sums of every 128th column: ``[rows, 128]``."""
    parts = [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)]
    return sum(parts[1:], start=parts[0])
