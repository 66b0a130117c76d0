"""Sizes of resized images, and their pixels as OpenCV computes them.

OpenCV resizes in fixed point, without antialiasing: what published segmentors and detectors were
trained on.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

Size = tuple[int, int]

# Images are spread over threads and processes already.
cv2.setNumThreads(0)


def fitted_size(size: Size, frame: Size) -> Size:
    """Return height and width of an image made as large as a frame allows, its shape kept.

    Args:
      size: Height and width.
      frame: Its longer side bounds the image's longer side, its shorter the shorter.
    """
    factor = min(max(frame) / max(size), min(frame) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def resize_image(image: UInt8[np.ndarray, "_ _ 3"], size: Size) -> UInt8[np.ndarray, "_ _ 3"]:
    """Resize to a height and width, bilinear, without antialiasing."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_nearest(pixels: UInt8[np.ndarray, "_ _"], size: Size) -> UInt8[np.ndarray, "_ _"]:
    """Resize a map of classes, or a mask, to a height and width by the nearest pixel."""
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_NEAREST)
