"""A picture of what a model looks at in a photo: its windows, heads, and what matters to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from natjax.backbones.base import VisionModel
from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from natjax.visualize.attention import attention_maps, saliency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Rows of an isotropic model, which has one level of many blocks, and heads in a row.
_MOST_ROWS, _MOST_HEADS = 4, 8
_QUERY = "#00e5ff"


def plot_attention(
    model: VisionModel,
    image: Float[Array, "B H W 3"],
    at: Sequence[int] | None = None,
    *,
    label: int | None = None,
) -> Figure:
    """Draw where the token of a pixel looks, level by level and head by head.

    The first row has the photo and, of a classifier, how much each pixel matters to the class
    (`saliency`). Each row below is the last block of a level (of an isotropic model, four blocks
    over its depth): the photo with the token and its window framed, then the attention of up to 8
    heads, each scaled to its own largest weight. Needs matplotlib.

    Args:
      model: a model of natjax.
      image: one normalised image, of any size that the model takes.
      at: row and column of the pixel; None is the middle.
      label: the class whose score pixels matter to; None is the likeliest.

    Returns:
      The figure; ``figure.savefig("attention.png")`` keeps it.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
      ValueError: more than one image, a pixel outside it, or no such class.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot_attention needs matplotlib: pip install matplotlib", name="matplotlib"
        ) from error
    if len(image) != 1:
        raise ValueError(f"image must be a batch of one; got {len(image)}")
    at = (image.shape[1] // 2, image.shape[2] // 2) if at is None else tuple(at)
    maps = {path: np.asarray(x[0]) for path, x in attention_maps(model, image, at).items()}
    rows = {path: maps[path] for path in deepest(maps)}
    columns = 1 + min(_MOST_HEADS, max(map(len, rows.values())))
    figure = Figure(figsize=(1 + 1.7 * columns, 2 * (1 + len(rows))), layout="constrained")
    places = figure.subplots(1 + len(rows), columns, squeeze=False)
    for axes in places.flat:
        axes.set_axis_off()
    photo = _photo(image)
    _draw_photo(places[0, 0], photo, at)
    if model.config.num_classes:
        _draw_saliency(places[0, 1], np.asarray(saliency(model, image, label)[0]))
    for axes, (path, heads) in zip(places[1:], rows.items(), strict=True):
        _draw_block(axes, photo, at, path, heads)
    return figure


def deepest(paths: Iterable[str]) -> list[str]:
    """The last block of each level, or some of the only one, in order of depth.

    Args:
      paths: of attention modules, as `natjax.attention_maps` calls them.
    """
    paths = list(paths)
    levels: dict[str, list[str]] = {}
    for path in paths:  # such as "levels.0.blocks.1.attn", or "layers.3.attn"
        levels.setdefault(path.rpartition(".blocks.")[0], []).append(path)
    if len(levels) > 1:
        return [max(blocks, key=_number) for blocks in levels.values()]
    blocks = sorted(paths, key=_number)
    count = min(_MOST_ROWS, len(blocks))
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def _number(path: str) -> int:
    """Which block of its level a path leads to."""
    return int(path.split(".")[-2])


def _photo(image: Float[Array, "1 H W 3"]) -> np.ndarray:
    """The image as it was before it was normalised."""
    pixels = np.asarray(image[0], np.float32) * np.asarray(IMAGENET_STD, np.float32)
    return (pixels + np.asarray(IMAGENET_MEAN, np.float32)).clip(0, 1)


def _draw_photo(axes: Axes, photo: np.ndarray, at: Sequence[int]) -> None:
    axes.imshow(photo)
    axes.plot(at[1], at[0], "o", color=_QUERY, markerfacecolor="none")
    axes.set_title("the pixel", fontsize=8)


def _draw_saliency(axes: Axes, matters: np.ndarray) -> None:
    axes.imshow(matters, cmap="inferno", vmin=0, vmax=max(np.quantile(matters, 0.995), 1e-12))
    axes.set_title("what matters", fontsize=8)


def _draw_block(
    places: Sequence[Axes], photo: np.ndarray, at: Sequence[int], path: str, heads: np.ndarray
) -> None:
    """A row: the window on the photo, then the heads."""
    places[0].imshow(photo)
    _frame_window(places[0], photo.shape[:2], at, heads)
    places[0].set_title(path.removesuffix(".attn"), fontsize=8)
    height, width = photo.shape[:2]
    for number, (axes, head) in enumerate(zip(places[1:], heads, strict=False)):
        axes.imshow(head, extent=(0, width, height, 0), cmap="inferno", vmin=0)
        title = f"head {number + 1}"
        if number == _MOST_HEADS - 1 and len(heads) > _MOST_HEADS:
            title += f" of {len(heads)}"
        axes.set_title(title, fontsize=8)


def _frame_window(axes: Axes, size: tuple[int, ...], at: Sequence[int], heads: np.ndarray) -> None:
    """Frame the token, and what lies between the outermost keys that it sees."""
    from matplotlib.patches import Rectangle

    tokens = heads.shape[1:]
    rows, columns = np.nonzero(heads.any(0))
    token = [place * n // side for place, n, side in zip(at, tokens, size, strict=True)]
    scale = [side / n for n, side in zip(tokens, size, strict=True)]
    window = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    for top, left, bottom, right in (window, (*token, token[0] + 1, token[1] + 1)):
        corner = (left * scale[1] - 0.5, top * scale[0] - 0.5)
        sides = ((right - left) * scale[1], (bottom - top) * scale[0])
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=_QUERY, linewidth=1.5))
