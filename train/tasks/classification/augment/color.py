"""Colour jitter."""

import numpy as np
from PIL import Image, ImageEnhance

_CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order.

    Args:
      image: Gray or RGB; saturation of gray images stays.
      strength: Each factor is uniform on [max(0, 1 - strength), 1 + strength].
      rng: Source of the order and the factors.
    """
    for index in rng.permutation(len(_CHANGES)):
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        image = _CHANGES[index](image).enhance(factor)
    return image
