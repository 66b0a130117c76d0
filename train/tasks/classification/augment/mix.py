"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of a whole batch, on the devices.

One draw decides for the global batch: which of the two, how much, where. A draw is a function of
its key alone, so every device makes the same one. The partner of row i is row B - 1 - i of the
global batch: of all pairings that one is the cheapest to have on many devices, each of which
exchanges its rows with one other (a collective-permute; nothing is gathered), and it is done on
uint8, before normalisation. Pairing the rows of each device among themselves would need no
exchange, but then the result would depend on how many devices there are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from natjax.train.tasks.classification.config import MixConfig


def draw_mix(
    key: Key[Array, ""], config: MixConfig, height: int, width: int
) -> tuple[Float[Array, "H W"], Float[Array, ""]]:
    """Draw how a batch is mixed.

    Args:
      key: Of the step.
      config: Which distributions.
      height: Of the images.
      width: Of the images.

    Returns:
      The weight of the own image at each pixel, and its mean, which is the weight of the own label.
      For CutMix that is what the box leaves after it is cut off at the border.
    """
    whether, which, how_much, box = jax.random.split(key, 4)
    mixes = jax.random.uniform(whether) < config.prob
    pastes = jax.random.uniform(which) < _chance_of_cutmix(config)
    # Where one of the two is off, its alpha is never looked at; it must only be positive.
    alphas = (config.cutmix_alpha or 1.0, config.mixup_alpha or 1.0)
    alpha = jnp.where(pastes, *alphas)
    share = jax.random.beta(how_much, alpha, alpha)
    outside = _outside_of_box(box, share, height, width)
    own = jnp.where(pastes, outside.mean(), share)
    weights = jnp.where(pastes, outside, share)
    return jnp.where(mixes, weights, 1.0), jnp.where(mixes, own, 1.0)


def mix_images(
    images: UInt8[Array, "B H W C"], partners: UInt8[Array, "B H W C"], own: Float[Array, "H W"]
) -> Float[Array, "B H W C"]:
    """Return each image blended with its partner, in float32, not rounded.

    Args:
      images: The images.
      partners: As many others.
      own: Weight of the own image at each pixel; the other has the rest.
    """
    own = own[None, :, :, None]
    return own * images.astype(jnp.float32) + (1 - own) * partners.astype(jnp.float32)


def _chance_of_cutmix(config: MixConfig) -> float:
    if config.mixup_alpha and config.cutmix_alpha:
        return config.switch_prob
    return 1.0 if config.cutmix_alpha else 0.0


def _outside_of_box(
    key: Key[Array, ""], share: Float[Array, ""], height: int, width: int
) -> Float[Array, "{height} {width}"]:
    """1 outside and 0 inside of a box that holds ``1 - share`` of the image, before it is cut off.

    Its middle is anywhere in the image.
    """
    side = jnp.sqrt(1 - share)
    inside = []
    for axis_key, length in zip(jax.random.split(key), (height, width), strict=True):
        half = (side * length).astype(jnp.int32) // 2
        middle = jax.random.randint(axis_key, (), 0, length)
        places = jnp.arange(length)
        inside.append((places >= middle - half) & (places < middle + half))
    rows, columns = inside
    return 1 - (rows[:, None] & columns[None, :]).astype(jnp.float32)
