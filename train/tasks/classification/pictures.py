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
    axes.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255
    )
    guess = int(row.argmax())
    text = f"{class_names[guess]} {row[guess]:.0%}"
    if guess != label:
        text += f"\nis {class_names[label]}"
    axes.set_title(text, fontsize=8, color=_RIGHT if guess == label else WRONG, pad=3)
