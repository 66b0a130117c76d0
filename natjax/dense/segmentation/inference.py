"""Class probabilities of the pixels of whole images: at once, by windows, over scales and flips.

All take the network as a function from normalised images to logits of their pixels, such as a
`natjax.UPerNet`, and work under `jax.jit` with sizes that are known there. The class of a pixel is
the ``argmax`` of its probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from natjax.dense.resize import resize_bilinear
from natjax.kernels.checks import axis_ints

Images = Float[Array, "B H W I"]
Pixels = Float[Array, "B H W classes"]
Network = Callable[[Images], Pixels]


def whole_image(
    network: Network, images: Images, size: Sequence[int]
) -> Float[Array, "B H2 W2 classes"]:
    """Probabilities of images that the network sees at once.

    The logits are interpolated twice, to the size of the network's input (by the network) and from
    there to the size of the result, as published results are made.

    Args:
      network: logits of the pixels of images.
      images: normalised images, resized for the network.
      size: height and width of the original image.
    """
    return jax.nn.softmax(resize_bilinear(network(images), size), axis=-1)


def sliding_window(
    network: Network,
    images: Images,
    size: Sequence[int],
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int],
) -> Float[Array, "B H2 W2 classes"]:
    """Probabilities of images that the network sees window by window.

    Windows start at multiples of the stride; the last ones are moved back into the image. Logits of
    a pixel are averaged over the windows that have it, then interpolated to ``size``.

    Args:
      network: logits of the pixels of images.
      images: normalised images, resized for the network.
      size: height and width of the original image.
      window: height and width of a window, or both at once; the image's where that is smaller.
      stride: between windows along height and width, or both at once.

    Raises:
      ValueError: a stride above the window, which would leave pixels out.
    """
    windows, strides = axis_ints("window", window, 2), axis_ints("stride", stride, 2)
    if any(step > side for step, side in zip(strides, windows, strict=True)):
        raise ValueError(f"stride must not exceed window {windows}; got {strides}")
    lengths = images.shape[1:3]
    sides = tuple(min(n, side) for n, side in zip(lengths, windows, strict=True))
    rows, columns = map(_starts, lengths, sides, strides)
    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    total = _sum_of_windows(network, images, jnp.asarray(corners, jnp.int32), sides)
    counts = np.outer(_cover(lengths[0], rows, sides[0]), _cover(lengths[1], columns, sides[1]))
    logits = total / jnp.asarray(counts, total.dtype)[None, :, :, None]
    return jax.nn.softmax(resize_bilinear(logits, size), axis=-1)


def multi_scale(
    probabilities: Network, scaled: Sequence[Float[Array, "B _H _W I"]], *, flip: bool = True
) -> Float[Array, "B H2 W2 classes"]:
    """The mean of probabilities over several sizes of the same images, and their mirror images.

    Args:
      probabilities: such as `whole_image` with its network and size; all results have one size.
      scaled: normalised images at each size for the network.
      flip: whether images flipped left to right take part, their results flipped back.

    Raises:
      ValueError: no images.
    """
    if not scaled:
        raise ValueError("scaled must hold images at one size at least; got none")
    results = [probabilities(images) for images in scaled]
    if flip:
        results += [jnp.flip(probabilities(jnp.flip(images, 2)), 2) for images in scaled]
    return sum(results[1:], results[0]) / len(results)


def _starts(length: int, side: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis."""
    count = 1 + -(-max(length - side, 0) // stride)
    return [min(i * stride, length - side) for i in range(count)]


def _cover(length: int, starts: Sequence[int], side: int) -> np.ndarray:
    """How many windows have each pixel of an axis."""
    pixels, first = np.arange(length), np.asarray(starts)[:, None]
    return ((first <= pixels) & (pixels < first + side)).sum(0)


def _sum_of_windows(
    network: Network, images: Array, corners: Array, sides: tuple[int, int]
) -> Array:
    """Logits of all windows, each added where it is; one at a time, compiled once."""

    def logits_at(corner: Array) -> Array:
        start = (0, corner[0], corner[1], 0)
        shape = (images.shape[0], *sides, images.shape[3])
        return network(jax.lax.dynamic_slice(images, start, shape))

    def add(total: Array, corner: Array) -> tuple[Array, None]:
        start = (0, corner[0], corner[1], 0)
        part = logits_at(corner)
        old = jax.lax.dynamic_slice(total, start, part.shape)
        return jax.lax.dynamic_update_slice(total, old + part, start), None

    out = jax.eval_shape(logits_at, corners[0])
    total = jnp.zeros((*images.shape[:3], out.shape[-1]), out.dtype)
    total, _ = jax.lax.scan(add, total, corners)
    return total
