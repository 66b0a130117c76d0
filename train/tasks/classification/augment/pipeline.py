"""From a decoded image to the pixels of one training example."""

import dataclasses
import functools

import numpy as np
from PIL import Image

from natjax.train.data.images import Pixels, random_shift, to_pixels
from natjax.train.tasks.classification.augment.color import jitter
from natjax.train.tasks.classification.augment.crop import (
    evaluation_view,
    pick_resampling,
    random_box,
    resize_box,
)
from natjax.train.tasks.classification.augment.rand_augment import fill_color, rand_augment
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.tasks.classification.policy import Policy, parse_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Random changes of one image, as far as they are made on the host.

    Attributes:
      augment: What to do.
      data: Size of the images, and the view of evaluation.
      mean: Mean of each channel, which fills what RandAugment leaves empty.
    """

    augment: AugmentConfig
    data: ImagesConfig
    mean: tuple[float, ...]

    @functools.cached_property
    def policy(self) -> Policy | None:
        """The RandAugment policy."""
        text = self.augment.rand_augment
        return None if text is None else parse_policy(text)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Pixels:
        """Return ``uint8[side, side, channels]``; every draw comes from `rng`."""
        augment = self.augment
        image = self._cropped(image, rng)
        if augment.hflip and rng.random() < augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy is not None:
            fill = fill_color(self.mean)
            image = rand_augment(image, self.policy, augment.interpolation, fill, rng)
        elif augment.color_jitter:
            image = jitter(image, augment.color_jitter, rng)
        return to_pixels(image)

    def _cropped(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        augment, side = self.augment, self.data.image_size
        if augment.crop == "resized":
            box = random_box(*image.size, augment.scale, augment.ratio, rng)
            return resize_box(image, box, side, pick_resampling(augment.interpolation, rng))
        image = evaluation_view(image, self.data)
        return random_shift(image, augment.shift, rng) if augment.crop == "shift" else image
