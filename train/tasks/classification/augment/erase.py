"""Random erasing (Zhong et al., 2020) of normalised images, on the devices.

Every image has a key of its own, made of the step's key and its row in the global batch, so the
result does not depend on how rows are spread over devices or taken in parts.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from natjax.train.tasks.classification.config import EraseConfig

_TRIES = 10


def erase(
    images: Float[Array, "B H W C"],
    rows: Int[Array, " B"],
    key: Key[Array, ""],
    config: EraseConfig,
) -> Float[Array, "B H W C"]:
    """Return the images, some of them with boxes filled.

    Args:
      images: Normalised images.
      rows: Place of each in the global batch.
      key: Of the step.
      config: How often, how large, and with what.
    """

    def one(image: Float[Array, "H W C"], row: Int[Array, ""]) -> Float[Array, "H W C"]:
        where_key, fill_key = jax.random.split(jax.random.fold_in(key, row))
        boxes = draw_boxes(where_key, image.shape[0], image.shape[1], config)
        for index, box in enumerate(boxes):
            fill = _fill(jax.random.fold_in(fill_key, index), image, config.mode)
            image = jnp.where(box[:, :, None], fill, image)
        return image

    return jax.vmap(one)(images, rows)


def draw_boxes(
    key: Key[Array, ""], height: int, width: int, config: EraseConfig
) -> Bool[Array, "{config.count} {height} {width}"]:
    """Draw which pixels of an image each of its boxes erases; mostly there are none."""
    whether, how_many, where = jax.random.split(key, 3)
    chosen = jax.random.uniform(whether) < config.prob
    count = jax.random.randint(how_many, (), 1, config.count + 1)
    keys = jax.random.split(where, config.count)
    boxes = jnp.stack([_box(box, height, width, count, config) for box in keys])
    return chosen & (jnp.arange(config.count) < count)[:, None, None] & boxes


def _box(
    key: Key[Array, ""], height: int, width: int, count: Int[Array, ""], config: EraseConfig
) -> Bool[Array, "{height} {width}"]:
    """A box of uniform area and log-uniform aspect; the first of ten draws that fits, or none.

    The area is that of the configuration divided by `count`, the boxes of the image.
    """
    areas_key, aspects_key, top_key, left_key = jax.random.split(key, 4)
    low, high = (part * height * width for part in config.area)
    areas = jax.random.uniform(areas_key, (_TRIES,), minval=low, maxval=high)
    areas = areas / count.astype(areas.dtype)
    low, high = (math.log(aspect) for aspect in config.aspect)
    aspects = jnp.exp(jax.random.uniform(aspects_key, (_TRIES,), minval=low, maxval=high))
    heights = jnp.rint(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.rint(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    rows = _interval(top_key, heights[first], height)
    columns = _interval(left_key, widths[first], width)
    return fits.any() & rows[:, None] & columns[None, :]


def _interval(key: Key[Array, ""], size: Int[Array, ""], length: int) -> Bool[Array, "{length}"]:
    """True on `size` places in a row, anywhere among `length`."""
    start = jax.random.randint(key, (), 0, jnp.maximum(length - size, 0) + 1)
    places = jnp.arange(length)
    return (places >= start) & (places < start + size)


def _fill(key: Key[Array, ""], image: Float[Array, "H W C"], mode: str) -> Float[Array, "*_"]:
    if mode == "pixel":
        return jax.random.normal(key, image.shape)
    if mode == "color":
        return jax.random.normal(key, (1, 1, image.shape[2]))
    return jnp.zeros((1, 1, 1))
