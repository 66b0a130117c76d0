"""Legends, and pictures that are written."""

import numpy as np
from PIL import Image

from natjax.train.tasks.segmentation import pictures
from natjax.visualize.overlays import class_colors


def test_legend_has_the_classes_that_are_there_in_the_order_of_the_list():
    colors, names = class_colors(30), tuple(map(str, range(30)))
    found = pictures.legend_of([np.array([[2, 2, 0, 255]])], names, colors)
    assert [name for name, _ in found] == ["0", "2"]
    np.testing.assert_array_equal(found[1][1], colors[2])
    # Of many, the largest: all but the first six, which have a pixel each.
    labels = np.concatenate([np.arange(30), np.arange(6, 30)])[None]
    found = pictures.legend_of([labels], names, colors)
    assert [name for name, _ in found] == list(names[6:])


def test_pictures_are_written(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    labels = np.tile(np.arange(30) % 3, (20, 1)).astype(np.uint8)
    names = ("sky", "sea", "sand")
    pictures.plot_overlay(image, labels, names, tmp_path / "one.png")
    pictures.plot_results(
        [image] * 3, [labels] * 3, [labels] * 3, names, tmp_path / "all.png", title="t"
    )
    for name in ("one.png", "all.png"):
        with Image.open(tmp_path / name) as written:
            assert min(written.size) > 100
            pixels = np.asarray(written.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 3
