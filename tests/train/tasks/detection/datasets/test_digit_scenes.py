"""Scenes of digits, written and read as data in COCO's format."""

import numpy as np

from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets import digit_scenes
from natjax.train.tasks.detection.datasets.digit_scenes import SIDE, scene, write_scenes
from natjax.train.tasks.detection.datasets.registry import open_split

COUNTS = {"train": 12, "val": 6}


def test_scenes_are_what_the_files_say(tmp_path):
    write_scenes(tmp_path, COUNTS)
    split = open_split(ObjectsConfig(dir=tmp_path), "val")
    assert len(split) == 6
    assert split.classes == tuple(map(str, range(10)))
    assert split.annotations.broken.size == 0
    for index in range(6):
        image, labels, masks = scene("val", index)
        objects = split.objects(index)
        np.testing.assert_array_equal(objects.masks, masks)
        assert objects.labels.tolist() == labels
        assert objects.trained.all()
        outlines = [
            (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            for rows, columns in map(np.nonzero, masks)
        ]
        np.testing.assert_array_equal(objects.boxes, outlines)
        assert np.abs(split.image(index).astype(int) - image).mean() < 4  # JPEG


def test_scenes_are_functions_of_split_and_index():
    first, again = scene("train", 7), scene("train", 7)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[2], again[2])
    assert (first[0] != scene("train", 8)[0]).any()
    assert (first[0] != scene("val", 7)[0]).any()


def test_objects_are_seen_and_apart():
    """One to five, no pixel of two, each mostly seen and brighter than the darkened photo."""
    counts = []
    for index in range(40):
        image, labels, masks = scene("train", index)
        counts.append(len(labels))
        assert masks.sum(axis=0).max() == 1
        assert image.shape == (SIDE, SIDE, 3)
        brightness = image.max(axis=-1).astype(float)
        assert all(brightness[mask > 0].mean() > 140 for mask in masks)
        assert masks.sum(axis=(1, 2)).min() > 40
    assert set(counts) == {1, 2, 3, 4, 5}


def test_scenes_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_scenes, "_COUNTS", COUNTS)
    data = ObjectsConfig(name="digit_scenes", prepared_dir=tmp_path)
    assert len(open_split(data, "train")) == 12
    monkeypatch.setattr(digit_scenes, "write_scenes", None)
    assert len(open_split(data, "val")) == 6
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["digit_scenes_1"]
