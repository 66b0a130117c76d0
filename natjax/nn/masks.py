"""Masks of tokens, for batches that hold images of several sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from natjax.kernels import checks


def mask_of_sizes(
    sizes: Int[Array, "B axes"], tokens: Sequence[int], patch_size: int | Sequence[int] = 1
) -> Bool[Array, "B *X"]:
    """Which tokens of a padded batch belong to an image, as ``key_mask`` takes it.

    Images lie at the start of each axis, and are filled up at its end. A token that holds a part of
    an image belongs to it.

    Args:
      sizes: size of each image along each axis, in pixels (or frames, or samples).
      tokens: tokens of the batch along each axis.
      patch_size: pixels of a token along each axis.

    Raises:
      ValueError: sizes that are no whole numbers, or not one for each axis.

    >>> import jax.numpy as jnp, natjax
    >>> natjax.mask_of_sizes(jnp.array([[3], [5]]), (3,), patch_size=2).astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    axes = len(tokens)
    if sizes.ndim != 2 or sizes.shape[1] != axes or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes must be whole numbers of shape (batch, {axes}), one for each entry of "
            f"tokens={tuple(tokens)}; got {sizes.dtype.name} of shape {sizes.shape}"
        )
    patches = checks.axis_ints("patch_size", patch_size, axes)
    lengths = checks.axis_ints("tokens", tuple(tokens), axes)
    masks = []
    for axis, (length, patch) in enumerate(zip(lengths, patches, strict=True)):
        first_pixel = patch * jnp.arange(length, dtype=sizes.dtype)
        shape = (-1, *(length if i == axis else 1 for i in range(axes)))
        masks.append((first_pixel[None] < sizes[:, axis, None]).reshape(shape))
    return functools.reduce(jnp.logical_and, masks)
