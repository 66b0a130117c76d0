"""Pictures of a classifier: test images with predictions, and what is taken for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from natjax.train.reporting.curves import FAINT, INK, WRONG, save
from natjax.train.tasks.classification.confusion import Confusion

_RIGHT = "#2e7d4f"
_SHOWN = 40

# Up to so many classes each has a row with its name; more share a fixed number of rows.
_NAMED, _CELLS, _MISTAKES = 40, 125, 24

# Without the lightest, so that a single image can be told from none.
_BLUES = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))


def plot_confusion(
    confusion: Confusion, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draw the counts.

    Args:
      confusion: The counts.
      class_names: Name of each class.
      path: PNG file to write.
      title: Head line of the picture.
    """
    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    heat, bars = figure.subplots(1, 2, width_ratios=(7, 5))
    _heat_map(figure, heat, confusion, class_names)
    _mistakes(bars, confusion, class_names)
    save(figure, path)


def _heat_map(figure: Figure, axes: Axes, confusion: Confusion, class_names: Sequence[str]) -> None:
    classes = len(class_names)
    counts = confusion.matrix(classes, max(_NAMED, min(classes, _CELLS)))
    side = len(counts)
    shown = np.where(counts > 0, counts, np.nan)
    edge = side * -(-classes // side)
    image = axes.imshow(
        shown,
        cmap=_BLUES,
        norm=LogNorm(1, max(2, counts.max())),
        extent=(-0.5, edge - 0.5, edge - 0.5, -0.5),
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axes, label="images", shrink=0.8)
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    if classes <= _NAMED:
        axes.set_xticks(range(classes), class_names, rotation=90)
        axes.set_yticks(range(classes), class_names)
    if classes <= _NAMED // 2:
        for row, column in np.argwhere(counts > 0):
            dark = counts[row, column] > counts.max() ** 0.6
            color = "white" if dark else INK
            axes.text(
                column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color
            )


def _mistakes(axes: Axes, confusion: Confusion, class_names: Sequence[str]) -> None:
    pairs = confusion.mistakes(_MISTAKES)
    axes.set_title("most frequent mistakes: true > predicted", color=INK, fontsize=10, loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    if not pairs:
        axes.axis("off")
        axes.text(0, 1, "none", color=INK, va="top")
        return
    names = [f"{_short(class_names[a])} > {_short(class_names[b])}" for a, b, _ in pairs]
    bars = axes.barh(range(len(pairs)), [count for *_, count in pairs], color=WRONG, alpha=0.75)
    axes.bar_label(bars, fontsize=8, padding=2, color=INK)
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(_MISTAKES - 0.5, -0.5)
    axes.set_xticks([])


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def plot_sample(
    batch: Mapping[str, np.ndarray],
    probabilities: Float[np.ndarray, "B L"],
    class_names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draw the first images of an evaluation batch that count, with predictions.

    Args:
      batch: ``image``, ``label`` and ``mask``.
      probabilities: Probability of each class of each image.
      class_names: Name of each class.
      path: PNG file to write.
      title: Head line of the picture.
    """
    shown = np.flatnonzero(batch["mask"])[:_SHOWN]
    plot_predictions(
        batch["image"][shown],
        batch["label"][shown],
        probabilities[shown],
        class_names,
        path,
        title=title,
    )


def plot_predictions(
    images: UInt8[np.ndarray, "B H W C"],
    labels: Int[np.ndarray, " B"],
    probabilities: Float[np.ndarray, "B L"],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str,
    columns: int = 8,
) -> None:
    """Draw images with the predicted class and its probability; wrong ones in red, with the truth.

    Args:
      images: Pixels, as given to the network before normalisation.
      labels: True class of each image.
      probabilities: Probability of each class of each image.
      class_names: Name of each class.
      path: PNG file to write.
      title: Head line of the picture.
      columns: Images in a row.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.62 * rows + 0.5), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
    for axes, pixels, label, row in zip(grid, images, labels, probabilities, strict=False):
        _tile(axes, pixels, int(label), row, class_names)
    save(figure, path)


def _tile(
    axes: Axes, pixels: np.ndarray, label: int, row: np.ndarray, class_names: Sequence[str]
) -> None:
    _show(axes, pixels)
    guess = int(row.argmax())
    text = f"{class_names[guess]} {row[guess]:.0%}"
    if guess != label:
        text += f"\nis {class_names[label]}"
    axes.set_title(text, fontsize=8, color=_RIGHT if guess == label else WRONG, pad=3)


def plot_looks(
    images: UInt8[np.ndarray, "B H W C"],
    maps: Mapping[str, Float[np.ndarray, "_ _ _"]],
    path: Path,
    title: str,
) -> None:
    """Draw where the token in the middle of each image looks; brighter is more.

    Args:
      images: Pixels; the first are drawn, as many as the maps have.
      maps: Attention weights of the first images by block, such as ``"levels.0.blocks.1.attn"``.
      path: PNG file to write.
      title: Head line of the picture.
    """
    count, columns = len(next(iter(maps.values()))), 1 + len(maps)
    figure = Figure(figsize=(1.8 * columns, 1.8 * count + 0.7), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    places = figure.subplots(count, columns, squeeze=False)
    height, width = images.shape[1:3]
    for row, pixels in enumerate(images[:count]):
        _show(places[row, 0], pixels)
        places[row, 0].plot(width // 2, height // 2, "o", color=WRONG, markerfacecolor="none")
        for axes, weights in zip(places[row, 1:], maps.values(), strict=True):
            _show(axes, pixels)
            axes.imshow(
                weights[row],
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                cmap="inferno",
                alpha=0.75,
                vmin=0,
            )
    for axes, name in zip(places[0], ("the token", *maps), strict=True):
        axes.set_title(name.removesuffix(".attn"), fontsize=8, color=INK)
    for axes in places.flat:
        axes.axis("off")
    save(figure, path)


def _show(axes: Axes, pixels: np.ndarray) -> None:
    gray = pixels.shape[-1] == 1
    axes.imshow(pixels.squeeze(-1) if gray else pixels, cmap="gray", vmin=0, vmax=255)
