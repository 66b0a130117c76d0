"""Pictures of a classifier: test images with predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natjax.train.reporting.curves import INK, WRONG, save

_RIGHT = "#2e7d4f"
_SHOWN = 40


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
