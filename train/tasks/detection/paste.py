"""Masks of detections, from grids in their boxes to the pixels of the original image."""

import numpy as np
from jaxtyping import Float, Float32

Size = tuple[int, int]


def packed_masks(
    masks: Float[np.ndarray, "N S S"], boxes: Float32[np.ndarray, "N 4"], size: Size
) -> list[bytes]:
    """Return the packed run lengths of masks, stretched to their boxes and cut off at one half.

    As `natjax.dense.ops.masks.paste_masks`, but only where a mask can be.

    Args:
      masks: Probabilities.
      boxes: In pixels of the image.
      size: Height and width of the image.
    """
