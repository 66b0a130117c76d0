"""How images were prepared when the published accuracies were measured."""

from __future__ import annotations

import dataclasses
import math

from natjax.create import model_config

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
      name: one of `natjax.list_models`.

    >>> from natjax.preprocessing import preprocessing
    >>> preprocessing("nat_tiny").short_side, preprocessing("dinat_large_384").short_side
    (256, 384)
    """
    size = model_config(name).input_size
    return Preprocessing(size=size, crop_pct=1.0 if size == 384 else 0.875)
