"""Pictures of a neighborhood: which keys a query sees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from natjax.kernels import api

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OPS = {1: api.na1d, 2: api.na2d, 3: api.na3d}
_SEEN, _UNSEEN = "#5b8def", "#e9edf3"
_QUERY, _QUERY_ON_PHOTO = "#d81b60", "#00e5ff"
_GAP = 1  # columns between the frames of a video


def visible_keys(
    size: Sequence[int], query: Sequence[int], **options: Any
) -> Bool[np.ndarray, "*X"]:
    """Which keys a query sees, found by asking the op itself for a gradient.

    Args:
      size: keys along each axis, of which there are one to three.
      query: index of the query along each axis.
      **options: keyword arguments of `natjax.na1d`, `na2d` or `na3d`, ``kernel_size`` among them.

    Raises:
      ValueError: more than three axes, a query outside ``size``, or an argument that breaks its
        rule, as in the op.

    >>> visible_keys((8,), (0,), kernel_size=3).astype(int)
    array([1, 1, 1, 0, 0, 0, 0, 0])
    """
    size, query = tuple(size), tuple(query)
    if len(size) not in _OPS:
        raise ValueError(f"size must have one to three axes; got {size}")
    queries = tuple(n * r for n, r in zip(size, _ratios(len(size), options), strict=True))
    inside = [0 <= at < n for at, n in zip(query, queries, strict=False)]
    if len(query) != len(queries) or not all(inside):
        raise ValueError(f"query must be a token of {queries}; got {query}")
    keys = jnp.zeros((1, *size, 1, 1))

    def output(value: Float[Array, "1 *X 1 1"]) -> Float[Array, ""]:
        zeros = jnp.zeros((1, *queries, 1, 1))
        return _OPS[len(size)](zeros, keys, value, **options)[0, *query, 0, 0]

    return np.asarray(jax.grad(output)(keys))[0, ..., 0, 0] > 0


def _ratios(axes: int, options: dict[str, Any]) -> tuple[int, ...]:
    """Queries for each key along each axis."""
    ratio = options.get("query_ratio", 1)
    return (ratio,) * axes if isinstance(ratio, int) else tuple(ratio)


def plot_neighborhood(
    size: Sequence[int],
    query: Sequence[int],
    *,
    image: np.ndarray | None = None,
    axes: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draw the tokens, a query among them, and the keys that it sees.

    One axis is drawn as a strip, two as a grid, three as grids side by side. Needs matplotlib,
    which ``pip install 'natjax[train]'`` brings.

    Args:
      size: keys along each axis, of which there are one to three.
      query: index of the query along each axis; with ``query_ratio``, on the finer grid.
      image: an RGB photo to lay below a grid of two axes, dimmed where the query does not look;
        its sides must be multiples of the grid's.
      axes: where to draw; None is a new figure.
      **options: keyword arguments of `natjax.na1d`, `na2d` or `na3d`, ``kernel_size`` among them.

    Returns:
      What was drawn on; ``axes.figure.savefig("neighborhood.png")`` keeps it.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
      ValueError: more than three axes, a query outside ``size``, an image that does not fit, or an
        argument that breaks its rule, as in the op.

    >>> axes = plot_neighborhood((14, 14), (6, 9), kernel_size=5, dilation=2)
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot_neighborhood needs matplotlib: pip install matplotlib", name="matplotlib"
        ) from error
    seen = visible_keys(size, query, **options)
    rows, columns, corners = _layout(tuple(size))
    if axes is None:
        side = min(0.28, 12 / columns)
        _, axes = pyplot.subplots(
            figsize=(max(2.0, side * columns), max(0.6, side * rows)), layout="constrained"
        )
    if image is None:
        _draw_cells(axes, seen, corners)
    else:
        _draw_photo(axes, seen, np.asarray(image))
    ratios = _ratios(len(seen.shape), options)
    _mark_query(axes, corners, tuple(query), ratios, _QUERY if image is None else _QUERY_ON_PHOTO)
    axes.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.1), aspect="equal")
    axes.set_axis_off()
    return axes


def _layout(size: tuple[int, ...]) -> tuple[int, int, list[tuple[int, int]]]:
    """Rows and columns of cells in all, and the first row and column of each grid."""
    frames, height, width = (1, 1, 1, *size)[-3:]
    corners = [(0, frame * (width + _GAP)) for frame in range(frames)]
    return height, frames * (width + _GAP) - _GAP, corners


def _draw_cells(axes: Axes, seen: np.ndarray, corners: list[tuple[int, int]]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    frames = seen.reshape((1, 1, 1, *seen.shape)[-3:])
    cells, colors = [], []
    for (top, left), frame in zip(corners, frames, strict=True):
        for row, column in itertools.product(*map(range, frame.shape)):
            cells.append(Rectangle((left + column + 0.06, top + row + 0.06), 0.88, 0.88))
            colors.append(_SEEN if frame[row, column] else _UNSEEN)
    axes.add_collection(PatchCollection(cells, facecolors=colors, edgecolors="none"))


def _draw_photo(axes: Axes, seen: np.ndarray, image: np.ndarray) -> None:
    """The photo, dimmed where the query does not look, in units of tokens."""
    fits = (
        seen.ndim == 2
        and image.ndim == 3
        and image.shape[2] == 3
        and not any(side % n for side, n in zip(image.shape, seen.shape, strict=False))
    )
    if not fits:
        raise ValueError(
            f"image must be [height, width, 3] with sides that are multiples of {seen.shape};"
            f" got {image.shape}"
        )
    pixels = image / 255 if np.issubdtype(image.dtype, np.integer) else image
    patch = [side // n for side, n in zip(image.shape, seen.shape, strict=False)]
    light = np.kron(seen, np.ones(patch, bool))[..., None]
    height, width = seen.shape
    axes.imshow(np.where(light, pixels, 0.35 * pixels + 0.06), extent=(0, width, height, 0))
    for x in range(1, width):
        axes.axvline(x, color="white", linewidth=0.25, alpha=0.35)
    for y in range(1, height):
        axes.axhline(y, color="white", linewidth=0.25, alpha=0.35)


def _mark_query(
    axes: Axes,
    corners: list[tuple[int, int]],
    query: tuple[int, ...],
    ratios: tuple[int, ...],
    color: str,
) -> None:
    """Frame the query, which is smaller than a key where queries are finer."""
    from matplotlib.patches import Rectangle

    frame, row, column = (0, 0, 0, *query)[-3:]
    frames, rows, columns = (1, 1, 1, *ratios)[-3:]
    top, left = corners[frame // frames]
    place = (left + column / columns, top + row / rows)
    mark = Rectangle(place, 1 / columns, 1 / rows, fill=False, edgecolor=color, linewidth=2)
    axes.add_patch(mark)
