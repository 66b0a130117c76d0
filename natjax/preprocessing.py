"""How images were prepared when the published accuracies were measured."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from natjax.backbones.isotropic import Isotropic
from natjax.backbones.nat import NAT
from natjax.create import model_config
from natjax.nn.arguments import check_size

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any  # Pillow is no dependency of natjax's core

# Of ImageNet, as every published model was trained and tested with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a photo to the input of a model: RGB, bicubic resize, central crop, normalise.

    Attributes:
      size: side of the crop in pixels.
      crop_pct: side of the crop in units of the short side before it.
      mean: mean of each channel, of pixels in [0, 1].
      std: standard deviation of each channel.
    """

    size: int
    crop_pct: float
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def short_side(self) -> int:
        """Pixels of the short side after resizing."""
        return math.floor(self.size / self.crop_pct)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing; the long side is rounded down."""
        short, long = min(width, height), max(width, height)
        longer = int(self.short_side * long / short)
        return (self.short_side, longer) if width <= height else (longer, self.short_side)

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop in a resized image.

        Half a pixel goes to the even side, as Python rounds.
        """
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return left, top, left + self.size, top + self.size


def preprocessing(name: str) -> Preprocessing:
    """The published preprocessing of a model.

    Of a 224 pixel model the short side becomes 256 and the middle 224 are cut out; at 384 pixels
    nothing but the ends of the long side is cut off.

    Args:
      name: of a classifier, one of ``natjax.list_models(kind="classifier")``.

    Raises:
      ValueError: no classifier of that name; the message suggests near ones.

    >>> from natjax.preprocessing import preprocessing
    >>> preprocessing("nat_tiny").short_side, preprocessing("dinat_large_384").short_side
    (256, 384)
    """
    return _of_size(model_config(name).input_size)


def _of_size(size: int) -> Preprocessing:
    return Preprocessing(size=size, crop_pct=1.0 if size == 384 else 0.875)


def preprocess(
    image: str | os.PathLike[str] | Image | UInt8[np.ndarray, "H W *C"],
    model: str | NAT | Isotropic,
    *,
    size: int | None = None,
) -> Float[Array, "1 S S 3"]:
    """One image as a model's input, prepared as when the published accuracies were measured.

    RGB, upright by its EXIF orientation, resized by its short side (bicubic), its middle cut out,
    normalised with ImageNet's mean and deviation. Needs Pillow (``pip install 'natjax[images]'``).

    Args:
      image: path of an image file, an image of Pillow, or pixels from 0 to 255, gray or RGB.
      model: the model or its name, which says how large the input is.
      size: side of the input in pixels, where it is to be another.

    Returns:
      A batch of one image in float32. For several, ``jnp.concatenate`` them.

    Raises:
      ValueError: an unknown name, a model of other than 3 channels, what is no image, or no size.
      ModuleNotFoundError: Pillow is not installed.

    >>> import natjax, numpy as np
    >>> natjax.preprocess(np.zeros((480, 640, 3), np.uint8), "nat_tiny").shape
    (1, 224, 224, 3)
    """
    from natjax.images import open_image, prepare_photo, without_far_ends

    config = model_config(model) if isinstance(model, str) else model.config
    if config.in_channels != 3:
        raise ValueError(f"model must take RGB images; got in_channels={config.in_channels}")
    if isinstance(image, np.ndarray):
        opened = _from_pixels(image)
    else:
        opened = open_image(image) if isinstance(image, str | os.PathLike) else image
    if size is not None:
        check_size("size", size)
    how = _of_size(size or config.input_size)
    pixels = prepare_photo(without_far_ends(opened).convert("RGB"), how)
    mean, std = (np.asarray(x, np.float32) for x in (how.mean, how.std))
    return jnp.asarray((pixels.astype(np.float32) / 255 - mean) / std)[None]


def _from_pixels(pixels: UInt8[np.ndarray, "H W *C"]) -> Image:
    from PIL.Image import fromarray

    is_map = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3))
    if pixels.dtype != np.uint8 or not is_map or 0 in pixels.shape:
        raise ValueError(
            "image must be uint8 of shape [height, width] or [height, width, 1 or 3]; got "
            f"{pixels.dtype} of shape {pixels.shape}"
        )
    return fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
