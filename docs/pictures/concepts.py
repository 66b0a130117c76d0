"""Draw the pictures of docs/concepts.md: one for each argument that changes what a query sees.

python docs/pictures/concepts.py        # writes docs/pictures/concept-*.png
"""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import natjax

SIZE = (12, 12)
SEEN = np.random.default_rng(3).uniform(size=(1, *SIZE)) < 0.7
# File, and its panels: title, query, arguments.
PICTURES: dict[str, list[tuple[str, tuple[int, ...], dict[str, Any]]]] = {
    "window": [
        ("kernel_size=5", (5, 6), {"kernel_size": 5}),
        ("kernel_size=(3, 9)", (5, 6), {"kernel_size": (3, 9)}),
        ("kernel_size=4: one further left", (5, 6), {"kernel_size": 4}),
    ],
    "border": [
        ("inside", (5, 6), {"kernel_size": 5}),
        ("at an edge", (5, 11), {"kernel_size": 5}),
        ("in a corner", (0, 0), {"kernel_size": 5}),
    ],
    "dilation": [
        ("dilation=1", (5, 6), {"kernel_size": 5}),
        ("dilation=2", (5, 6), {"kernel_size": 5, "dilation": 2}),
        ("dilation=(1, 2)", (5, 6), {"kernel_size": 5, "dilation": (1, 2)}),
    ],
    "stride": [
        ("stride=3, one query", (3, 3), {"kernel_size": 5, "stride": 3}),
        ("its neighbor, the same window", (5, 4), {"kernel_size": 5, "stride": 3}),
        ("stride=kernel_size=4: blocks", (5, 4), {"kernel_size": 4, "stride": 4}),
    ],
    "periodic": [
        ("is_periodic=(False, True)", (5, 11), {"kernel_size": 5, "is_periodic": (False, True)}),
        ("is_periodic=True", (0, 11), {"kernel_size": 5, "is_periodic": True}),
        (
            "with dilation=3",
            (5, 11),
            {"kernel_size": 3, "dilation": 3, "is_periodic": (False, True)},
        ),
    ],
    "mask": [
        ("no mask", (5, 6), {"kernel_size": 5}),
        ("key_mask", (7, 5), {"kernel_size": 5, "key_mask": SEEN}),
        ("a hidden query still looks", (5, 6), {"kernel_size": 5, "key_mask": SEEN}),
    ],
    "ratio": [
        ("query_ratio=1", (5, 6), {"kernel_size": 5}),
        ("query_ratio=2", (11, 12), {"kernel_size": 5, "query_ratio": 2}),
        ("query_ratio=4", (20, 27), {"kernel_size": 5, "query_ratio": 4}),
    ],
    "causal": [
        ("is_causal=False", (5, 6), {"kernel_size": 5}),
        ("is_causal=(True, False)", (5, 6), {"kernel_size": 5, "is_causal": (True, False)}),
        ("is_causal=True", (5, 6), {"kernel_size": 5, "is_causal": True}),
    ],
}


def draw(name: str, panels: list[tuple[str, tuple[int, ...], dict[str, Any]]]) -> pathlib.Path:
    """Draw one picture and save it."""
    figure, places = plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels), 2.9), layout="constrained"
    )
    for axes, (title, query, options) in zip(places, panels, strict=True):
        natjax.plot_neighborhood(SIZE, query, axes=axes, **options)
        axes.set_title(title, fontsize=10)
    return _save(figure, name)


def draw_bias() -> pathlib.Path:
    """Draw where a query finds the bias of each of its keys, inside and in a corner."""
    bias = np.arange(81.0).reshape(9, 9)
    figure, places = plt.subplots(1, 2, figsize=(5.6, 2.9), layout="constrained")
    cases = (("inside: the middle of the table", (2, 2)), ("in a corner: a corner of it", (4, 4)))
    for axes, (title, (top, left)) in zip(places, cases, strict=True):
        axes.imshow(bias, cmap="Blues", alpha=0.35)
        window = np.full_like(bias, np.nan)
        window[top : top + 5, left : left + 5] = bias[top : top + 5, left : left + 5]
        axes.imshow(window, cmap="Blues", vmin=0, vmax=80)
        axes.plot(4, 4, marker="s", color="#d81b60", markersize=11, fillstyle="none")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return _save(figure, "bias")


def _save(figure: Any, name: str) -> pathlib.Path:
    path = pathlib.Path(__file__).with_name(f"concept-{name}.png")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def main() -> None:
    """Draw all pictures."""
    for name, panels in PICTURES.items():
        print(draw(name, panels))
    print(draw_bias())


if __name__ == "__main__":
    main()
