"""Masks of detections, from grids in their boxes to the pixels of the original image."""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from natjax.train.tasks.detection.datasets.masks import pack_pixels

Size = tuple[int, int]


def packed_masks(
    masks: Float[np.ndarray, "N S S"], boxes: Float32[np.ndarray, "N 4"], size: Size
) -> list[bytes]:
    """Return the packed run lengths of masks, stretched to their boxes and cut off at one half.

    The pixels are those of `natjax.dense.ops.masks.paste_masks`, computed only in each box.

    Args:
      masks: Probabilities.
      boxes: In pixels of the image.
      size: Height and width of the image.
    """
    return [
        pack_pixels(paste_mask(mask, box, size)[None])[0]
        for mask, box in zip(masks, boxes, strict=True)
    ]


def paste_mask(
    mask: Float[np.ndarray, "S S"], box: Float32[np.ndarray, " 4"], size: Size
) -> UInt8[np.ndarray, "H W"]:
    """Return the pixels of a mask, 0 or 1; none where the box has no area."""
    pasted = np.zeros(size, np.uint8, order="F")  # as run lengths go
    cells = mask.shape[0]
    (top, rows), (left, columns) = (
        _axis_weights(box[1 - axis], box[3 - axis], size[axis], cells) for axis in range(2)
    )
    part = rows @ mask.astype(np.float32) @ columns.T
    pasted[top : top + len(rows), left : left + len(columns)] = part >= 0.5
    return pasted


def _axis_weights(
    low: np.float32, high: np.float32, length: int, cells: int
) -> tuple[int, Float32[np.ndarray, "P S"]]:
    """The first pixel of a box along an axis, and weights of the mask's cells from there on.

    Linear between the centres of the cells, with zeros beyond them; so a mask is less than one half
    where its box ends.
    """
    if not high > low:
        return 0, np.zeros((0, cells), np.float32)
    first, last = np.clip([np.floor(low - 0.5), np.ceil(high - 0.5) + 1], 0, length).astype(int)
    pixels = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    at = (pixels - low) / (high - low) * np.float32(cells) - np.float32(0.5)
    away = np.abs(at[:, None] - np.arange(cells, dtype=np.float32))
    return int(first), np.maximum(1 - away, 0)
