"""Which boxes a detector is trained to move onto an object, and which to call background."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from natjax.dense.ops.boxes import pairwise_iou


class Assignment(NamedTuple):
    """What each box is for. One that is neither positive nor negative takes no part in the loss.

    Attributes:
      objects: index of the object of a positive box; 0 for others.
      positive: whether the box belongs to an object.
      negative: whether it is background.
    """

    objects: Int[Array, "*B N"]
    positive: Bool[Array, "*B N"]
    negative: Bool[Array, "*B N"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxIoUAssigner:
    """Assign boxes by their largest IoU with an object.

    Attributes:
      positive_iou: from this on, a box belongs to the object that it overlaps most, the first one
        of equals.
      negative_iou: below this, a box is background.
      match_low_quality: whether each object also gets the boxes that overlap it as much as the best
        does, so that none is left without. A box that is best for several objects gets the last.
      lowest_iou: of the best box of an object, for ``match_low_quality``.
    """

    positive_iou: float
    negative_iou: float
    match_low_quality: bool = False
    lowest_iou: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                "negative_iou must not exceed positive_iou, and both lie in [0, 1]; got"
                f" {self.negative_iou} and {self.positive_iou}"
            )

    def __call__(
        self,
        boxes: Float[Array, "N 4"],
        objects: Float[Array, "G 4"],
        *,
        valid: Bool[Array, "N"],
        valid_objects: Bool[Array, "G"],
    ) -> Assignment:
        """Assign boxes.

        "As much as the best" is equality of floats, as published. Of an object that lies inside
        several equal boxes, rounding decides which of them it gets.

        Args:
          boxes: anchors or proposals.
          objects: boxes of the objects.
          valid: boxes that take part. The others are neither positive nor negative.
          valid_objects: objects that take part.
        """
        start = (
            jnp.zeros(boxes.shape[0], boxes.dtype),
            jnp.zeros(boxes.shape[0], jnp.int32),
            jnp.full(boxes.shape[0], -1, jnp.int32),
        )

        def visit(state: tuple[Array, Array, Array], item: tuple[Array, Array, Array]):
            highest, nearest, forced = state
            number, box, is_valid = item
            # Computed once: the comparisons below are of the same floats.
            iou = jax.lax.optimization_barrier(pairwise_iou(box[None], boxes)[0])
            iou = jnp.where(valid & is_valid, iou, -1)
            nearest = jnp.where(iou > highest, number, nearest)
            best = jnp.max(iou, initial=-1)
            is_best = (iou == best) & (best >= self.lowest_iou) & (iou >= 0)
            forced = jnp.where(is_best, number, forced)
            return (jnp.maximum(highest, iou), nearest, forced), None

        numbers = jnp.arange(objects.shape[0], dtype=jnp.int32)
        (highest, nearest, forced), _ = jax.lax.scan(
            visit, start, (numbers, objects, valid_objects)
        )
        positive = valid & (highest >= self.positive_iou) & jnp.any(valid_objects)
        negative = valid & (highest < self.negative_iou) & ~positive
        if self.match_low_quality:
            nearest = jnp.where(forced >= 0, forced, nearest)
            positive |= forced >= 0
            negative &= forced < 0
        return Assignment(jnp.where(positive, nearest, 0), positive, negative)
