"""Where an image is cut out of a photo, in training and in evaluation."""

import math

import numpy as np
from PIL import Image

from natjax.train.data.images import center_view
from natjax.train.tasks.classification.config import ImagesConfig

Box = tuple[int, int, int, int]
_TRIES = 10
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def evaluation_view(image: Image.Image, data: ImagesConfig) -> Image.Image:
    """Return the middle of an image, resized as configured.

    Args:
      image: Of any size.
      data: Side of the result, part of the short side that it holds, and the filter.
    """
    return center_view(image, data.image_size, data.crop_pct, data.eval_interpolation)


def pick_resampling(interpolation: str, rng: np.random.Generator) -> Image.Resampling:
    """Return Pillow's filter of a name; ``"random"`` draws bilinear or bicubic."""
    if interpolation == "random":
        interpolation = "bicubic" if rng.random() < 0.5 else "bilinear"
    return _RESAMPLING[interpolation]


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw left, top, right and bottom of a crop (Szegedy et al., 2015).

    The area is uniform, the logarithm of width over height too. What does not fit is drawn again,
    ten times; then it is the middle of the image, of the nearest allowed ratio.

    Args:
      width: Of the image, in pixels.
      height: Of the image, in pixels.
      scale: Smallest and largest area, as a part of the image.
      ratio: Smallest and largest width over height.
      rng: Source of the draws.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(_TRIES):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return middle_box(width, height, ratio)


def middle_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """Return the largest box in the middle with a ratio of width to height between two."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resize_box(
    image: Image.Image, box: Box, side: int, resampling: Image.Resampling
) -> Image.Image:
    """Return a part of the image, resized to a square.

    Cut out first, as timm does, though Pillow can resize a part in place: its filters would then
    see pixels beyond the edges of the part. The cut costs a hundredth of the resizing.
    """
    if box != (0, 0, *image.size):
        image = image.crop(box)
    return image if image.size == (side, side) else image.resize((side, side), resampling)
