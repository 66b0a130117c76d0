"""Draw the README's picture: a photo, three queries, and the keys that each of them sees.

    python docs/pictures/neighborhood.py        # writes docs/pictures/neighborhood.png

The keys are not drawn from a formula: they are those to which `natjax.na2d` passes a gradient.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

import natjax

GRID = 28  # tokens along a side
PATCH = 15  # pixels along a side of a token
WINDOW = 7
PANELS = (
    ("window 7 x 7, centred on the query", (11, 16), 1),
    ("at a border it is shifted inside", (1, 26), 1),
    ("dilation 3: as many keys, three times as far", (12, 15), 3),
)


def visible_keys(query: tuple[int, int], dilation: int) -> Bool[np.ndarray, "H W"]:
    """Which tokens a query attends to, found by asking for the gradient of its output."""
    zeros = jnp.zeros((1, GRID, GRID, 1, 1))

    def output(value: Float[Array, "1 H W 1 1"]) -> Float[Array, ""]:
        out = natjax.na2d(zeros, zeros, value, kernel_size=WINDOW, dilation=dilation)
        return out[0, query[0], query[1], 0, 0]

    return np.asarray(jax.grad(output)(zeros))[0, ..., 0, 0] > 0


def photo() -> Float[np.ndarray, "pixels pixels 3"]:
    """A square of a photo by vultilion on Flickr (CC BY 2.0), which scikit-learn carries."""
    side = GRID * PATCH
    return load_sample_image("flower.jpg")[:side, 120 : 120 + side] / 255


def draw(axes: Axes, title: str, query: tuple[int, int], dilation: int) -> None:
    """Draw the photo with everything dimmed that the query does not see."""
    seen = np.kron(visible_keys(query, dilation), np.ones((PATCH, PATCH)))[..., None]
    axes.imshow(np.where(seen > 0, photo(), 0.35 * photo() + 0.06))
    for line in range(1, GRID):
        axes.axhline(line * PATCH - 0.5, color="white", linewidth=0.25, alpha=0.35)
        axes.axvline(line * PATCH - 0.5, color="white", linewidth=0.25, alpha=0.35)
    corner = (query[1] * PATCH - 0.5, query[0] * PATCH - 0.5)
    axes.add_patch(Rectangle(corner, PATCH, PATCH, fill=False, edgecolor="#00e5ff", linewidth=2.5))
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def main() -> None:
    """Draw all panels and save them."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11, 3.9), layout="constrained")
    for axes, panel in zip(panels, PANELS, strict=True):
        draw(axes, *panel)
    path = pathlib.Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
