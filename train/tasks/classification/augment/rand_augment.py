"""RandAugment: which operations an image gets, and how strong."""

import numpy as np
from PIL import Image

from natjax.train.tasks.classification.augment.crop import pick_resampling
from natjax.train.tasks.classification.augment.ops import OPERATIONS, Fill
from natjax.train.tasks.classification.policy import MAX_MAGNITUDE, Policy

_NAMES = tuple(OPERATIONS)


def rand_augment(
    image: Image.Image, policy: Policy, interpolation: str, fill: Fill, rng: np.random.Generator
) -> Image.Image:
    """Return the image after the policy's operations.

    They are drawn uniformly and with replacement; each is then done or not, with a magnitude, a
    sign and a filter of its own.

    Args:
      image: Gray or RGB.
      policy: Numbers of the policy.
      interpolation: Filter of operations that move pixels.
      fill: Colour that comes in at the borders.
      rng: Source of all draws.
    """
    for index in rng.integers(0, len(_NAMES), size=policy.layers):
        if rng.random() < policy.prob:
            image = _apply(image, _NAMES[index], policy, interpolation, fill, rng)
    return image


def draw_magnitude(policy: Policy, rng: np.random.Generator) -> float:
    """Draw the magnitude of one operation, in [0, 10]."""
    return float(np.clip(rng.normal(policy.magnitude, policy.std), 0, MAX_MAGNITUDE))


def _apply(
    image: Image.Image,
    name: str,
    policy: Policy,
    interpolation: str,
    fill: Fill,
    rng: np.random.Generator,
) -> Image.Image:
    operation = OPERATIONS[name]
    strength = operation.strength(draw_magnitude(policy, rng))
    if operation.signed and rng.random() < 0.5:
        strength = -strength
    return operation.apply(image, strength, pick_resampling(interpolation, rng), fill)


def fill_color(mean: tuple[float, ...]) -> Fill:
    """Return the mean colour in whole steps of 1/255, as Pillow wants it."""
    levels = tuple(min(255, round(255 * value)) for value in mean)
    return levels if len(levels) > 1 else levels[0]
