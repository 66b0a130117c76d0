"""Anchors: the boxes that a region proposal network starts from, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Size = tuple[int, int]
"""Height and width of a map."""


def base_anchors(stride: int, scale: float, ratios: Sequence[float]) -> np.ndarray:
    """Anchors of the top left cell of a map, ``[len(ratios), 4]`` in float32.

    All have the area ``(scale * stride) ** 2``, a ratio of height to width each, and their centre
    in the cell's top left corner.

    >>> base_anchors(4, 8.0, [1.0]).tolist()
    [[-16.0, -16.0, 16.0, 16.0]]
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))
    half_width, half_height = scale * stride / roots / 2, scale * stride * roots / 2
    return np.stack([-half_width, -half_height, half_width, half_height], axis=1)


def pyramid_anchors(
    sizes: Sequence[Size], strides: Sequence[int], *, scale: float, ratios: Sequence[float]
) -> Float[Array, "A 4"]:
    """Anchors of all cells of all maps of a pyramid.

    Args:
      sizes: height and width of each map.
      strides: pixels between two cells, of each map.
      scale: side of an anchor in units of the stride.
      ratios: of height to width; a cell has an anchor for each.

    Returns:
      The anchors in the order level, row, column, ratio, in float32.
    """
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        x = jnp.arange(width, dtype=jnp.float32)[None, :, None] * stride
        y = jnp.arange(height, dtype=jnp.float32)[:, None, None] * stride
        x, y = (jnp.broadcast_to(corner, (height, width, 1)) for corner in (x, y))
        shifts = jnp.stack([x, y, x, y], axis=-1)
        base = jnp.asarray(base_anchors(stride, scale, ratios))
        levels.append((shifts + base[None, None]).reshape(-1, 4))
    return jnp.concatenate(levels)


def anchors_in_padding(
    sizes: Sequence[Size],
    strides: Sequence[int],
    padded_size: Float[Array, "2"],
    num_ratios: int,
) -> Bool[Array, "A"]:
    """Which anchors belong to cells beyond an image's own padding, and so do not count.

    Images of a batch are padded to the size of the largest, and each has a size that the published
    recipe would have padded it to by itself.

    Args:
      sizes: height and width of each map.
      strides: pixels between two cells, of each map.
      padded_size: height and width of the image with its own padding.
      num_ratios: anchors of a cell.
    """
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        cells = jnp.ceil(padded_size / stride)
        rows = jnp.arange(height, dtype=cells.dtype) >= cells[0]
        columns = jnp.arange(width, dtype=cells.dtype) >= cells[1]
        outside = rows[:, None] | columns[None, :]
        levels.append(jnp.repeat(outside.reshape(-1), num_ratios))
    return jnp.concatenate(levels)


def anchors_inside(
    anchors: Float[Array, "A 4"], size: Float[Array, "2"], border: float
) -> Bool[Array, "A"]:
    """Which anchors reach at most ``border`` pixels beyond an image of ``size``.

    An anchor that ends on the right or bottom limit counts as beyond it, as published.
    """
    height, width = size[0], size[1]
    x1, y1, x2, y2 = (anchors[:, i] for i in range(4))
    near = (x1 >= -border) & (y1 >= -border)
    return near & (x2 < width + border) & (y2 < height + border)
