"""Image files and photos of any size, as pixels for a model; with Pillow."""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from natjax.preprocessing import Preprocessing  # which brings in JAX; workers do without

# All that is read, wherever images come from. Not Encapsulated PostScript, which Pillow hands to an
# interpreter of programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000")


def open_image(source: str | os.PathLike[str] | io.BufferedIOBase) -> Image.Image:
    """Decode an image of any of `FORMATS` and any mode; upright by its EXIF orientation.

    Of an animation it is the first frame.

    Args:
      source: path, or an open file.

    Raises:
      ValueError: it is no image, is damaged, or would unfold to an unreasonable size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                upright.load()
                return upright
    except Exception as error:  # decoders of hostile files raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"cannot read image {source}: {reason}") from error


def prepare_photo(image: Image.Image, how: Preprocessing) -> UInt8[np.ndarray, "H W C"]:
    """Resize the short side, bicubic, and cut out the middle.

    Args:
      image: in RGB.
      how: sizes.
    """
    size = how.resized(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image.crop(how.crop_box(*image.size)), np.uint8)


def without_far_ends(image: Image.Image) -> Image.Image:
    """Cut the ends of a strip off, more than 16 times its short side from the middle.

    Resizing a strip of 1 x 100000 pixels by its short side would take all memory.
    """
    short = min(image.size)
    width, height = min(image.width, 32 * short), min(image.height, 32 * short)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if (width, height) == image.size:
        return image
    return image.crop((left, top, left + width, top + height))
