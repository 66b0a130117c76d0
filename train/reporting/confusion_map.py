"""A picture of what is taken for what: a heat map, and the most frequent mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from natjax.train.reporting.confusion import Confusion
from natjax.train.reporting.curves import FAINT, INK, WRONG, save

# Up to so many classes each has a row with its name; more share a fixed number of rows.
_NAMED, _CELLS, _MISTAKES = 40, 125, 24

# Without the lightest, so that a single image can be told from none.
_BLUES = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))


def plot_confusion(
    confusion: Confusion, class_names: Sequence[str], path: Path, *, title: str, unit: str
) -> None:
    """Draw the counts.

    Args:
      confusion: The counts.
      class_names: Name of each class.
      path: PNG file to write.
      title: Head line of the picture.
      unit: What is counted, such as ``"images"``.
    """
    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    heat, bars = figure.subplots(1, 2, width_ratios=(7, 5))
    _heat_map(heat, confusion, class_names, unit)
    _mistakes(bars, confusion, class_names)
    save(figure, path)


def _heat_map(axes: Axes, confusion: Confusion, class_names: Sequence[str], unit: str) -> None:
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
    axes.figure.colorbar(image, ax=axes, label=unit, shrink=0.8)
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    if classes <= _NAMED:
        axes.set_xticks(range(classes), class_names, rotation=90)
        axes.set_yticks(range(classes), class_names)
    if classes <= _NAMED // 2:
        for row, column in np.argwhere(counts > 0):
            dark = counts[row, column] > counts.max() ** 0.6
            axes.text(
                column,
                row,
                _rounded(int(counts[row, column])),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
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
    axes.bar_label(bars, [_rounded(count) for *_, count in pairs], fontsize=8, padding=2, color=INK)
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(_MISTAKES - 0.5, -0.5)
    axes.set_xticks([])


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _rounded(count: int) -> str:
    """A count in at most five letters, as in ``"9999"``, ``"12k"``, ``"3.4M"``, ``"120M"``."""
    if count < 10_000:
        return str(count)
    if count < 1_000_000:
        return f"{count / 1e3:.0f}k"
    return f"{count / 1e6:.2g}M" if count < 10_000_000 else f"{count / 1e6:.0f}M"
