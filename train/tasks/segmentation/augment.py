"""The random changes of a training image: what to draw, and in which order.

The order of the draws is mmsegmentation's, so that its recorded random numbers give its pixels.
"""

import dataclasses

import numpy as np

from natjax.train.data.resize import Size, fitted_size, resize_image, resize_nearest
from natjax.train.tasks.segmentation.config import AugmentConfig
from natjax.train.tasks.segmentation.transforms import (
    IGNORE,
    Distortion,
    Image,
    Labels,
    crop_suits,
    distort,
    pad,
)

_MORE_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Example:
    """A training image of the size of the crop.

    Attributes:
      image: Pixels; those that fill up are 0.
      labels: Class of each pixel, or `IGNORE`; those that fill up are ignored.
      size: Height and width of the part, from the upper left, that is not filled up.
    """

    image: Image
    labels: Labels
    size: Size


def augment(image: Image, labels: Labels, how: AugmentConfig, rng: np.random.Generator) -> Example:
    """Resize, crop, flip and distort; every draw comes from `rng`.

    Args:
      image: Pixels.
      labels: Class of each pixel, or `IGNORE`.
      how: What to do.
      rng: Source of the draws.
    """
    size = fitted_size(labels.shape, draw_scale(how, rng))
    image, labels = resize_image(image, size), resize_nearest(labels, size)
    image, labels = random_crop(image, labels, how, rng)
    if rng.random() < how.hflip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if how.distort:
        image = distort(np.ascontiguousarray(image), draw_distortion(rng))
    side = (how.crop, how.crop)
    return Example(pad(image, side, 0), pad(labels, side, IGNORE), labels.shape)


def draw_scale(how: AugmentConfig, rng: np.random.Generator) -> Size:
    """Draw the frame that the image is fitted into."""
    least, most = how.scale
    ratio = rng.random() * (most - least) + least
    return int(how.frame[0] * ratio), int(how.frame[1] * ratio)


def random_crop(
    image: Image, labels: Labels, how: AugmentConfig, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Cut out a square, or as much of it as there is, where classes are mixed.

    A crop of one class, or nearly, is drawn anew, ten times; then it is taken as it is.
    """
    rows, columns = _draw_box(labels.shape, how.crop, rng)
    for _ in range(_MORE_TRIES if how.category_limit < 1 else 0):
        if crop_suits(labels[rows, columns], how.category_limit):
            break
        rows, columns = _draw_box(labels.shape, how.crop, rng)
    return image[rows, columns], labels[rows, columns]


def _draw_box(size: Size, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    top, left = (int(rng.integers(max(n - side, 0) + 1)) for n in size)
    return slice(top, top + side), slice(left, left + side)


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Draw a distortion; each of its changes has an even chance."""
    brightness = _maybe(rng, -32.0, 32.0)
    contrast_first = _coin(rng)
    contrast = _maybe(rng, 0.5, 1.5) if contrast_first else None
    saturation = _maybe(rng, 0.5, 1.5)
    hue = int(rng.integers(-18, 18)) if _coin(rng) else None
    if not contrast_first:
        contrast = _maybe(rng, 0.5, 1.5)
    return Distortion(
        brightness=brightness,
        contrast=contrast,
        contrast_first=contrast_first,
        saturation=saturation,
        hue=hue,
    )


def _maybe(rng: np.random.Generator, least: float, most: float) -> float | None:
    return float(rng.uniform(least, most)) if _coin(rng) else None


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.integers(2))
