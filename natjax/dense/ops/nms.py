"""Non-maximum suppression: of boxes that overlap, the one with the highest score stays."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from natjax.dense.ops.boxes import pairwise_iou

# Boxes that are decided together. A block costs its square and the number of boxes kept so far.
_BLOCK = 256


class Kept(NamedTuple):
    """What suppression leaves, in descending order of score.

    Attributes:
      indices: of the boxes that stay; 0 where nothing is left.
      valid: whether an entry of ``indices`` is one.
    """

    indices: Int[Array, "K"]
    valid: Bool[Array, "K"]


class _State(NamedTuple):
    block: Array  # the next one
    count: Array  # of boxes kept
    boxes: Array  # kept so far, in the first ``count`` rows
    groups: Array
    indices: Array


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    *,
    iou_threshold: float,
    max_kept: int,
    groups: Int[Array, "N"] | None = None,
    valid: Bool[Array, "N"] | None = None,
) -> Kept:
    """Keep boxes greedily by score.

    Boxes are visited in descending order of score, those with equal scores in order of index; a box
    stays unless its IoU with one that stayed before exceeds the threshold. The result is exactly
    that of this definition. The work goes in blocks: a block is compared with what was kept so far,
    then decided in itself, and the first ``max_kept`` end the search.

    Args:
      boxes: corners.
      scores: not NaN.
      iou_threshold: an overlap of exactly this does not suppress.
      max_kept: how many boxes may stay, the size of the result.
      groups: boxes of different groups (classes, levels) do not suppress each other; None is one
        group.
      valid: boxes to look at; None is all.
    """
    if max_kept < 1:
        raise ValueError(f"max_kept must be positive; got {max_kept}")
    total = boxes.shape[0]
    groups = jnp.zeros(total, jnp.int32) if groups is None else groups
    valid = jnp.ones(total, bool) if valid is None else valid
    if total == 0:
        return Kept(jnp.zeros(max_kept, jnp.int32), jnp.zeros(max_kept, bool))
    # Stable, so equal scores keep the order of their indices.
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    size = min(_BLOCK, total)
    state = _State(
        block=jnp.int32(0),
        count=jnp.int32(0),
        boxes=jnp.zeros((max_kept + size, 4), boxes.dtype),
        groups=jnp.zeros(max_kept + size, groups.dtype),
        indices=jnp.zeros(max_kept + size, jnp.int32),
    )
    candidates = jnp.sum(valid, dtype=jnp.int32)
    order = jnp.pad(order, (0, -total % size))
    step = functools.partial(
        _next_block,
        boxes=boxes,
        groups=groups,
        order=order,
        candidates=candidates,
        iou_threshold=iou_threshold,
        size=size,
    )
    state = jax.lax.while_loop(
        lambda s: (s.block * size < candidates) & (s.count < max_kept), step, state
    )
    found = jnp.arange(max_kept, dtype=jnp.int32) < state.count
    return Kept(jnp.where(found, state.indices[:max_kept], 0), found)


def _next_block(
    state: _State,
    *,
    boxes: Array,
    groups: Array,
    order: Array,
    candidates: Array,
    iou_threshold: float,
    size: int,
) -> _State:
    """Decide the next ``size`` boxes, and append those that stay."""
    start = state.block * size
    chosen = jax.lax.dynamic_slice(order, (start,), (size,))
    new, new_groups = boxes[chosen], groups[chosen]
    free = start + jnp.arange(size, dtype=jnp.int32) < candidates

    def suppresses(earlier: Array, earlier_groups: Array) -> Array:
        iou = pairwise_iou(earlier, new, eps=float(jnp.finfo(boxes.dtype).tiny))
        return (iou > iou_threshold) & (earlier_groups[:, None] == new_groups[None, :])

    def visit(number: Array, free: Array) -> Array:
        # The last piece may begin with rows of the one before.
        first = jnp.minimum(number * size, state.boxes.shape[0] - size)
        piece, groups = (
            jax.lax.dynamic_slice_in_dim(rows, first, size) for rows in (state.boxes, state.groups)
        )
        kept = first + jnp.arange(size, dtype=jnp.int32) < state.count
        return free & ~jnp.any(suppresses(piece, groups) & kept[:, None], axis=0)

    # Only as many pieces of what was kept as there are by now.
    free = jax.lax.fori_loop(0, -(-state.count // size), visit, free)
    stays = _decide(free, jnp.triu(suppresses(new, new_groups), k=1))

    # Those that stay come first, and the rows behind them are overwritten by the next block.
    front = jnp.argsort(~stays, stable=True)

    def append(buffer: Array, rows: Array) -> Array:
        at = (state.count,) + (jnp.int32(0),) * (buffer.ndim - 1)
        return jax.lax.dynamic_update_slice(buffer, rows[front], at)

    return _State(
        block=state.block + 1,
        count=state.count + jnp.sum(stays, dtype=jnp.int32),
        boxes=append(state.boxes, new),
        groups=append(state.groups, new_groups),
        indices=append(state.indices, chosen),
    )


def _decide(free: Bool[Array, "B"], suppresses: Bool[Array, "B B"]) -> Bool[Array, "B"]:
    """Which boxes of a block stay, when row ``i`` of ``suppresses`` holds what box ``i`` removes.

    Starting from all, the boxes that no remaining one removes are taken again and again. After
    ``n`` rounds the first ``n + 1`` boxes are right, since only earlier ones remove a box; most
    blocks need three or four.
    """

    def another(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays, _ = state
        removed = jnp.any(suppresses & stays[:, None], axis=0)
        return free & ~removed, stays

    first = another((free, free))
    return jax.lax.while_loop(lambda s: jnp.any(s[0] != s[1]), another, first)[0]


class Detections(NamedTuple):
    """Boxes with one class each, in descending order of score.

    Attributes:
      boxes: corners; 0 where nothing was found.
      scores: 0 where nothing was found.
      labels: class; 0 where nothing was found.
      indices: which of the regions the detection comes from.
      valid: whether there is a detection.
    """

    boxes: Float[Array, "*B K 4"]
    scores: Float[Array, "*B K"]
    labels: Int[Array, "*B K"]
    indices: Int[Array, "*B K"]
    valid: Bool[Array, "*B K"]


def multiclass_nms(
    boxes: Float[Array, "N C 4"],
    scores: Float[Array, "N C"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_kept: int,
    valid: Bool[Array, "N"] | None = None,
    candidates: int | None = None,
) -> Detections:
    """Suppression within each class, of regions that have a box and a score for every class.

    Equal scores go by region, then by class.

    Args:
      boxes: one for each class of each region.
      scores: likewise.
      score_threshold: only scores above it are looked at.
      iou_threshold: as in `nms`.
      max_kept: how many detections there are at most, the size of the result.
      valid: regions to look at; None is all.
      candidates: how many scores can exceed the threshold, where that is known to be less than all:
        of probabilities that sum to 1, at most ``1 / score_threshold`` for a region. Only the
        highest so many are looked at.
    """
    regions, classes = scores.shape
    limit = min(regions * classes, candidates or regions * classes)
    good = scores > score_threshold
    if valid is not None:
        good &= valid[:, None]
    # top_k puts the lower index first where values are equal.
    best, chosen = jax.lax.top_k(jnp.where(good, scores, -jnp.inf).reshape(-1), limit)
    boxes = boxes.reshape(-1, 4)[chosen]
    labels = chosen % classes
    kept = nms(
        boxes,
        best,
        iou_threshold=iou_threshold,
        max_kept=max_kept,
        groups=labels,
        valid=best > -jnp.inf,
    )

    def pick(rows: Array) -> Array:
        rows = rows[kept.indices]
        there = kept.valid.reshape((-1,) + (1,) * (rows.ndim - 1))
        return jnp.where(there, rows, jnp.zeros_like(rows))

    return Detections(pick(boxes), pick(best), pick(labels), pick(chosen // classes), kept.valid)
