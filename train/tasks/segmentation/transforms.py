"""Changes of an image together with its label map, as mmsegmentation makes them.

Images are ``uint8[H, W, 3]`` in RGB, label maps ``uint8[H, W]``. Each change is a function of its
random numbers, so that it can be compared with the original; `natjax.train.tasks.segmentation.
augment` draws them. OpenCV computes pixels: its 8-bit hues, and its resizing
(`natjax.train.data.resize`), are what published models were trained on.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from natjax.train.data.resize import Size

Image = UInt8[np.ndarray, "_ _ 3"]
Labels = UInt8[np.ndarray, "_ _"]
IGNORE = 255


def crop_suits(labels: Labels, limit: float) -> bool:
    """Whether a crop has more than one class, none of them in too many pixels.

    Args:
      labels: Of the crop; pixels to be ignored do not count.
      limit: Part of the pixels that the largest class must stay below.
    """
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)[:IGNORE]
    counts = counts[counts > 0]
    return bool(len(counts) > 1 and counts.max() / counts.sum() < limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distortion:
    """Photometric distortion: what is None is left as it is.

    Attributes:
      brightness: Added to all channels.
      contrast: Factor of all channels.
      contrast_first: Whether contrast changes before saturation and hue, or after.
      saturation: Factor of the saturation.
      hue: Added to the hue, of 180 in a circle.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = True
    saturation: float | None = None
    hue: int | None = None


def distort(image: Image, by: Distortion) -> Image:
    """Change brightness, contrast, saturation and hue; each result is cut off to whole numbers."""
    if by.brightness is not None:
        image = _scaled(image, shift=by.brightness)
    if by.contrast is not None and by.contrast_first:
        image = _scaled(image, factor=by.contrast)
    if by.saturation is not None:
        image = _with_saturation(image, by.saturation)
    if by.hue is not None:
        image = _with_hue(image, by.hue)
    if by.contrast is not None and not by.contrast_first:
        image = _scaled(image, factor=by.contrast)
    return image


def _scaled(pixels: np.ndarray, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    scaled = pixels.astype(np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _with_saturation(image: Image, factor: float) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[:, :, 1] = _scaled(hsv[:, :, 1], factor=factor)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _with_hue(image: Image, shift: int) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + shift) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def pad(pixels: np.ndarray, size: Size, value: int) -> np.ndarray:
    """Add pixels of one value below and on the right, up to a height and width."""
    below, right = (side - n for side, n in zip(size, pixels.shape, strict=False))
    if not (below or right):
        return pixels
    widths = [(0, below), (0, right), *[(0, 0)] * (pixels.ndim - 2)]
    return np.pad(pixels, widths, constant_values=value)


def without_zero(labels: Labels) -> Labels:
    """Return label maps in which 0 is no class: 0 becomes `IGNORE`, other labels one less."""
    return np.where(labels == 0, IGNORE, labels - 1).astype(np.uint8)


def normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return pixels less their mean over their deviation, as float32.

    Args:
      image: Pixels.
      mean: Of each channel, of pixels in [0, 255].
      std: Of each channel, of pixels in [0, 255].
    """
    mean, std = (np.asarray(values, np.float64) for values in (mean, std))
    return ((image.astype(np.float32) - mean) / std).astype(np.float32)
