"""Masks of objects: from the image to the small grid that a detector predicts, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from natjax.dense.ops.boxes import clip_boxes
from natjax.dense.ops.roi_align import bin_weights

# Masks resampled together; each is raised to float32 at its full size.
_TOGETHER = 8


def mask_targets(
    masks: Bool[Array, "G H W"],
    boxes: Float[Array, "P 4"],
    objects: Int[Array, "P"],
    *,
    size: int,
) -> Bool[Array, "P S S"]:
    """The part of an object's mask in a box, on a grid.

    Args:
      masks: of the objects of an image, on its canvas.
      boxes: in pixels; what lies beyond the canvas is cut off.
      objects: which mask each box is for.
      size: side of the grid.

    Returns:
      Whether at least half of a cell is covered.
    """
    height, width = masks.shape[1:]
    canvas = jnp.asarray([height, width], boxes.dtype)
    rows, columns = _axis_weights(clip_boxes(boxes, canvas), (height, width), size)

    def resample(item: tuple[Array, Array, Array]) -> Array:
        row, column, number = item
        mask = masks[number].astype(row.dtype)
        return _product(row, _product(mask, column.T)) >= 0.5

    return jax.lax.map(resample, (rows, columns, objects), batch_size=_TOGETHER)


def _axis_weights(boxes: Array, limits: tuple[int, int], size: int) -> list[Array]:
    """Weights of the pixels of an image in the cells of each box, along height and width."""
    return [
        bin_weights(
            boxes[:, 1 - axis] - 0.5,
            boxes[:, 3 - axis] - boxes[:, 1 - axis],
            jnp.full(boxes.shape[0], limit, jnp.int32),
            bins=size,
            positions=limit,
        )
        for axis, limit in enumerate(limits)
    ]


def paste_masks(
    masks: Float[Array, "N S S"], boxes: Float[Array, "N 4"], size: tuple[int, int]
) -> Float[Array, "N H W"]:
    """Stretch each mask to its box on an empty canvas.

    Pixels are interpolated linearly between the centres of the mask's cells, with zeros around the
    mask, so that it fades out over half a cell beyond the box.

    Args:
      masks: probabilities.
      boxes: in pixels of the canvas; one without area leaves its canvas empty.
      size: height and width of the canvas.

    Returns:
      The canvases; a pixel belongs to the object from one half on.
    """
    cells = masks.shape[1]

    def weights(axis: int) -> Array:
        low, high = boxes[:, 1 - axis], boxes[:, 3 - axis]
        side = jnp.where(high > low, high - low, 1)
        pixels = jnp.arange(size[axis], dtype=boxes.dtype) + 0.5
        at = (pixels[None] - low[:, None]) / side[:, None] * cells - 0.5
        index = jnp.arange(cells, dtype=boxes.dtype)
        weight = jnp.maximum(1 - jnp.abs(at[..., None] - index[None, None]), 0)
        return jnp.where((high > low)[:, None, None], weight, 0)

    rows, columns = weights(0), weights(1)
    return _product(_product(rows, masks.astype(rows.dtype)), jnp.swapaxes(columns, -1, -2))


def _product(left: Array, right: Array) -> Array:
    """A product in full precision, since the results are compared with one half."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
