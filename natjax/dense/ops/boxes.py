"""Boxes: area, overlap, clipping, and the deltas that a detector predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# A predicted side is at most 62.5 times that of the box it starts from (Faster R-CNN's 1000 / 16).
_LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
# What a union is at least, so that boxes without area have an overlap, which is 0.
_SMALLEST_UNION = 1e-6


def box_area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Width times height; the corners must be in order."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip_boxes(boxes: Float[Array, "*N 4"], size: Float[Array, "2"]) -> Float[Array, "*N 4"]:
    """Move corners outside of an image of ``size`` (height, width) to its border."""
    height, width = size[0], size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def pairwise_iou(
    boxes: Float[Array, "N 4"], others: Float[Array, "M 4"], *, eps: float = _SMALLEST_UNION
) -> Float[Array, "N M"]:
    """Intersection over union of each of ``boxes`` with each of ``others``.

    Args:
      boxes: any boxes; those without area have overlap 0 with all.
      others: more boxes.
      eps: what a union is at least.
    """
    return _iou(boxes[:, None, :], others[None, :, :], eps)[0]


def box_iou(boxes: Float[Array, "*N 4"], others: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Intersection over union of each box with its partner."""
    return _iou(boxes, others, _SMALLEST_UNION)[0]


def box_giou(boxes: Float[Array, "*N 4"], others: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Generalised intersection over union of each box with its partner, in (-1, 1].

    The IoU less the share of the smallest box around both that neither covers, so that boxes apart
    have a gradient towards each other (Rezatofighi et al., 2019).
    """
    iou, union = _iou(boxes, others, _SMALLEST_UNION)
    low = jnp.minimum(boxes[..., :2], others[..., :2])
    high = jnp.maximum(boxes[..., 2:], others[..., 2:])
    sides = jnp.maximum(high - low, 0)
    around = jnp.maximum(sides[..., 0] * sides[..., 1], _SMALLEST_UNION)
    return iou - (around - union) / around


def _iou(boxes: Array, others: Array, eps: float) -> tuple[Array, Array]:
    """IoU and union of boxes whose leading axes broadcast."""
    low = jnp.maximum(boxes[..., :2], others[..., :2])
    high = jnp.minimum(boxes[..., 2:], others[..., 2:])
    sides = jnp.maximum(high - low, 0)
    overlap = sides[..., 0] * sides[..., 1]
    union = jnp.maximum(box_area(boxes) + box_area(others) - overlap, eps)
    return overlap / union, union


def encode_boxes(
    boxes: Float[Array, "*N 4"], targets: Float[Array, "*N 4"], stds: Sequence[float]
) -> Float[Array, "*N 4"]:
    """Deltas that lead from ``boxes`` to ``targets``.

    Centres move in units of the box's sides, and sides change by the logarithm of their ratio; both
    are divided by ``stds`` (x, y, width, height), which brings what a stage of the detector has to
    predict to about unit size.

    Args:
      boxes: where the prediction starts; of positive width and height.
      targets: where it should end; of positive width and height.
      stds: typical sizes of the four deltas.
    """
    centre, sides = _centre_and_sides(boxes)
    target_centre, target_sides = _centre_and_sides(targets)
    deltas = [(target_centre - centre) / sides, jnp.log(target_sides / sides)]
    return jnp.concatenate(deltas, axis=-1) / _four(stds, boxes)


def decode_boxes(
    boxes: Float[Array, "*N 4"],
    deltas: Float[Array, "*M 4"],
    stds: Sequence[float],
    size: Float[Array, "2"] | None = None,
) -> Float[Array, "*M 4"]:
    """The boxes that deltas lead to; undoes `encode_boxes`.

    Args:
      boxes: where the deltas start; leading axes broadcast against those of ``deltas``.
      deltas: as from `encode_boxes`. No side grows or shrinks by more than 62.5.
      stds: as for `encode_boxes`.
      size: height and width of the image to clip the result to; None does not clip.
    """
    deltas = deltas.astype(boxes.dtype) * _four(stds, deltas).astype(boxes.dtype)
    centre, sides = _centre_and_sides(boxes)
    centre = centre + sides * deltas[..., :2]
    ratios = jnp.exp(jnp.clip(deltas[..., 2:], -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))
    half = sides * ratios * 0.5
    result = jnp.concatenate([centre - half, centre + half], axis=-1)
    return result if size is None else clip_boxes(result, size)


def _centre_and_sides(boxes: Array) -> tuple[Array, Array]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def _four(values: Sequence[float], like: Array) -> Array:
    """Four constants, shaped to broadcast against boxes."""
    array = np.asarray(values, like.dtype)
    if array.shape != (4,) or not (array > 0).all():
        raise ValueError(f"stds must be four positive numbers; got {values!r}")
    return jnp.asarray(array.reshape((1,) * (like.ndim - 1) + (4,)))
