"""The two pictures of a run: its learning curves, and test images with predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from natjax.train.reporting.metrics import Line

INK, FAINT = "#24292f", "#c9d1d9"
_TRAIN, _RAW, _EMA = "#8da0b6", "#2f6fb7", "#d9622b"
_RIGHT, WRONG = "#2e7d4f", "#c22f3d"
_PIXELS_PER_INCH = 140


def plot_curves(lines: Sequence[Line], path: Path, title: str) -> None:
    """Draw loss, accuracy and learning rate against the step.

    Args:
      lines: Metrics, as `natjax.train.reporting.metrics.read_metrics` yields them.
      path: PNG file to write.
      title: Head line of the picture.
    """
    train = [line for line in lines if line["kind"] == "train"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(5, 5, 3))
    _curve(loss, train, "loss", _TRAIN, "training (smoothed targets)")
    _curve(accuracy, train, "accuracy", _TRAIN, "training (augmented)")
    _curve(rate, train, "learning_rate", INK, None)
    for weights, color, name in (("raw", _RAW, "test"), ("ema", _EMA, "test, averaged weights")):
        tests = [line for line in lines if line["kind"] == "eval" and line["weights"] == weights]
        _curve(loss, tests, "loss", color, name, marker="o")
        _curve(accuracy, tests, "top1", color, name, marker="o")
    _style(loss, "cross-entropy (nats)")
    _style(accuracy, "top-1 accuracy")
    _style(rate, "learning rate")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    rate.yaxis.set_major_formatter("{x:g}")
    save(figure, path)


def _curve(
    axes: Axes, lines: Sequence[Line], key: str, color: str, label: str | None, **style: Any
) -> None:
    points = [(line["step"], line[key]) for line in lines if line[key] is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, label=label, linewidth=1.6, markersize=3.5, **style)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, color=INK, fontsize=10, loc="left")
    axes.set_xlabel("step", color=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


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


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_PIXELS_PER_INCH, facecolor="white")
