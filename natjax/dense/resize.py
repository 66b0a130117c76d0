"""Maps at other sizes: interpolation, bilinear and nearest, and adaptive pooling, as in PyTorch.

All are products with small matrices, one an axis, or copies of rows and columns, so their gradients
are products and sums: nothing is scattered, and results do not depend on the order of additions.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from natjax.kernels.checks import accumulation_dtype, axis_ints


def resize_bilinear(
    x: Float[Array, "B H W C"], size: int | Sequence[int]
) -> Float[Array, "B H2 W2 C"]:
    """Interpolate linearly along both axes, between the centres of pixels.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``: beyond the outer
    centres the map goes on as its last pixel, and a smaller size picks pixels without averaging.

    Args:
      x: a map.
      size: new height and width, or both at once. The present size returns ``x`` itself.

    Returns:
      The map in its dtype; half-precision maps are interpolated in float32.

    Raises:
      ValueError: a size that is not positive.

    >>> import jax.numpy as jnp
    >>> resize_bilinear(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    height, width = axis_ints("size", size, 2)
    if x.shape[1:3] == (height, width):
        return x
    shape = (x.shape[0], height, width, x.shape[3])
    exact = x.astype(accumulation_dtype(x.dtype))
    return jax.image.resize(exact, shape, "linear", antialias=False).astype(x.dtype)


def resize_nearest(
    x: Float[Array, "B H W C"], size: int | Sequence[int]
) -> Float[Array, "B H2 W2 C"]:
    """Repeat or drop rows and columns.

    As ``torch.nn.functional.interpolate(mode="nearest")``: entry ``i`` of ``m`` along an axis of
    ``n`` is entry ``floor(i * n / m)``.

    Args:
      x: a map.
      size: new height and width, or both at once.

    Raises:
      ValueError: a size that is not positive.

    >>> import jax.numpy as jnp
    >>> resize_nearest(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 3)).ravel().tolist()
    [0.0, 0.0, 4.0]
    """
    for axis, length in enumerate(axis_ints("size", size, 2), start=1):
        x = _nearest(x, axis, length)
    return x


def _nearest(x: Array, axis: int, length: int) -> Array:
    old = x.shape[axis]
    if length in (2 * old, 2 * old - 1):  # what halves to ``old``, rounded up: all entries twice
        twice = jnp.stack([x, x], axis=axis + 1)
        twice = twice.reshape(*x.shape[:axis], 2 * old, *x.shape[axis + 1 :])
        return jax.lax.slice_in_dim(twice, 0, length, axis=axis)
    source = np.arange(length) * old // length
    if np.array_equal(source, np.arange(old)):
        return x
    chosen = jnp.asarray(source[:, None] == np.arange(old), x.dtype)
    moved = jnp.tensordot(x, chosen, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(moved, -1, axis)


def adaptive_average_pool(
    x: Float[Array, "B H W C"], size: int | Sequence[int]
) -> Float[Array, "B H2 W2 C"]:
    """Average over cells that cover the map evenly.

    As ``torch.nn.functional.adaptive_avg_pool2d``: cell ``i`` of ``m`` along an axis of ``n``
    pixels begins at ``floor(i * n / m)`` and ends before ``ceil((i + 1) * n / m)``. Cells overlap
    where ``m`` does not divide ``n``, and repeat pixels where ``m`` exceeds it.

    Args:
      x: a map.
      size: number of cells along height and width, or both at once.

    Returns:
      The averages, computed in float32 (float64 for float64 maps), in the dtype of the map.

    Raises:
      ValueError: a size that is not positive.

    >>> import jax.numpy as jnp
    >>> adaptive_average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 2)).ravel().tolist()
    [0.5, 1.5]
    """
    exact = accumulation_dtype(x.dtype)
    rows, columns = (
        jnp.asarray(_cell_averages(n, cells), exact)
        for n, cells in zip(x.shape[1:3], axis_ints("size", size, 2), strict=True)
    )
    pooled = jnp.einsum(
        "bhwc,ih,jw->bijc", x.astype(exact), rows, columns, precision=jax.lax.Precision.HIGHEST
    )
    return pooled.astype(x.dtype)


def _cell_averages(length: int, cells: int) -> np.ndarray:
    """The matrix ``[cells, length]`` that averages over each cell of an axis."""
    matrix = np.zeros((cells, length))
    for i in range(cells):
        start, stop = i * length // cells, -(-(i + 1) * length // cells)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
