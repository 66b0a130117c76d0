"""Pictures of label maps: overlays with a legend, pages of results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from natjax.train.reporting.curves import INK, save
from natjax.train.tasks.segmentation.transforms import IGNORE
from natjax.visualize.overlays import class_colors, overlay, paint

_NAMED = 24


def legend_of(
    labels: Sequence[Integer[np.ndarray, "_ _"]],
    class_names: Sequence[str],
    colors: UInt8[np.ndarray, "L 3"],
) -> list[tuple[str, np.ndarray]]:
    """Return names and colours of the classes that are there, in the order of the list.

    Of more than 24 classes, those of most pixels.
    """
    counts = sum(np.bincount(one.ravel(), minlength=IGNORE + 1) for one in labels)
    counts = np.asarray(counts)[: len(class_names)]
    largest = [i for i in np.argsort(-counts, kind="stable") if counts[i]][:_NAMED]
    return [(class_names[i], colors[i]) for i in sorted(largest)]


def plot_overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "H W"],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draw a photo tinted by class, with a legend beside it.

    Args:
      image: The photo.
      labels: Predicted class of each pixel.
      class_names: Name of each class.
      path: PNG file to write.
    """
    colors = class_colors(len(class_names))
    height, width = image.shape[:2]
    side = 7.0
    shape = (side, side * height / width) if width > height else (side * width / height, side)
    figure = Figure(figsize=(shape[0] + 2.2, max(shape[1], 2.0)), layout="constrained")
    axes = figure.subplots()
    _show(axes, overlay(image, labels, colors))
    entries = legend_of([labels], class_names, colors)
    _legend(figure, entries, loc="outside right center", columns=1)
    save(figure, path)


def plot_results(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    labels: Sequence[Integer[np.ndarray, "_ _"]],
    guesses: Sequence[Integer[np.ndarray, "_ _"]],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw images, their label maps and the predictions, three columns in a row of each.

    Args:
      images: Pixels, at any size.
      labels: Class of each pixel, or `IGNORE`.
      guesses: Predicted class of each pixel.
      class_names: Name of each class.
      path: PNG file to write.
      title: Head line of the picture.
    """
    colors = class_colors(len(class_names))
    across = 2 if len(images) > 1 else 1
    rows = -(-len(images) // across)
    figure = Figure(figsize=(1.9 * 3 * across, 2.0 * rows + 1.2), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    grid = figure.subplots(rows, 3 * across, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    tiles = grid.reshape(-1, 3)
    for place, image, truth, guess in zip(tiles, images, labels, guesses, strict=False):
        for axes, pixels in zip(
            place, (image, paint(truth, colors), paint(guess, colors)), strict=True
        ):
            _show(axes, pixels)
    for axes, name in zip(grid[0], ("image", "truth", "prediction") * across, strict=True):
        axes.set_title(name, fontsize=9, color=INK)
    entries = legend_of([*labels, *guesses], class_names, colors)
    _legend(figure, entries, loc="outside lower center", columns=8)
    save(figure, path)


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.axis("off")


def _legend(
    figure: Figure, entries: list[tuple[str, np.ndarray]], *, loc: str, columns: int
) -> None:
    patches = [Patch(color=color / 255, label=name) for name, color in entries]
    # Matplotlib goes down the columns; a list is read along the rows.
    patches = [patch for column in range(columns) for patch in patches[column::columns]]
    if patches:
        figure.legend(handles=patches, loc=loc, ncols=columns, fontsize=8, frameon=False)
