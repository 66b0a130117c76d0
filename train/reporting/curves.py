"""Learning curves, and how pictures of runs look."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from natjax.train.reporting.metrics import Line, Panel

INK, FAINT, WRONG = "#24292f", "#c9d1d9", "#c22f3d"
_TRAIN, _RAW, _EMA = "#8da0b6", "#2f6fb7", "#d9622b"
_PIXELS_PER_INCH = 140


def plot_curves(lines: Sequence[Line], panels: Sequence[Panel], path: Path, title: str) -> None:
    """Draw quantities, and the learning rate, against the step.

    Args:
      lines: Metrics, as `natjax.train.reporting.metrics.read_metrics` yields them.
      panels: What to draw.
      path: PNG file to write.
      title: Head line of the picture.
    """
    train = [line for line in lines if line["kind"] == "train"]
    figure = Figure(figsize=(4 * len(panels) + 3, 4.2), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    *places, last = figure.subplots(1, len(panels) + 1, width_ratios=(*(5,) * len(panels), 3))
    for axes, panel in zip(places, panels, strict=True):
        _draw(axes, panel, train, lines)
    _curve(last, train, "learning_rate", INK, None)
    _style(last, "learning rate")
    last.yaxis.set_major_formatter("{x:g}")
    save(figure, path)


def _draw(axes: Axes, panel: Panel, train: Sequence[Line], lines: Sequence[Line]) -> None:
    if panel.training is not None:
        _curve(axes, train, panel.training, _TRAIN, panel.training_title)
    for weights, color, name in (("raw", _RAW, "test"), ("ema", _EMA, "test, averaged weights")):
        tests = [line for line in lines if line["kind"] == "eval" and line["weights"] == weights]
        if panel.score is not None:
            _curve(axes, tests, panel.score, color, name, marker="o")
    _style(axes, panel.title)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _curve(
    axes: Axes, lines: Sequence[Line], key: str, color: str, label: str | None, **style: Any
) -> None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_PIXELS_PER_INCH, facecolor="white")
