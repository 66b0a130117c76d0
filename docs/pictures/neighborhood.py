"""Draw the README's picture: a photo, three queries, and the keys that each of them sees.

python docs/pictures/neighborhood.py        # writes docs/pictures/neighborhood.png
"""

from __future__ import annotations

import pathlib

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from sklearn.datasets import load_sample_image

import natjax

GRID = 28  # tokens along a side
PATCH = 15  # pixels along a side of a token
PANELS = (
    ("window 7 x 7, centred on the query", (11, 16), 1),
    ("at a border it is shifted inside", (1, 26), 1),
    ("dilation 3: as many keys, three times as far", (12, 15), 3),
)


def photo() -> Float[np.ndarray, "pixels pixels 3"]:
    """A square of a photo by vultilion on Flickr (CC BY 2.0), which scikit-learn carries."""
    side = GRID * PATCH
    return load_sample_image("flower.jpg")[:side, 120 : 120 + side] / 255


def main() -> None:
    """Draw all panels and save them."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11, 3.9), layout="constrained")
    for axes, (title, query, dilation) in zip(panels, PANELS, strict=True):
        natjax.plot_neighborhood(
            (GRID, GRID), query, kernel_size=7, dilation=dilation, image=photo(), axes=axes
        )
        axes.set_title(title, fontsize=11)
    path = pathlib.Path(__file__).with_suffix(".png")
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
