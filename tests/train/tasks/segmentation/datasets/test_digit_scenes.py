"""Scenes of digits on photographs."""

import numpy as np

from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.digit_scenes import SIDE, Scenes
from natjax.train.tasks.segmentation.datasets.registry import get_label_maps


def test_scenes_are_functions_of_their_index():
    maps = get_label_maps(LabelMapsConfig(name="digit_scenes"))
    train, held_out = maps.open("train"), maps.open("val")
    assert (len(train), len(held_out)) == (4000, 400)
    first, again = train[7], Scenes("train")[7]
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], again["label"])
    assert (first["image"] != train[8]["image"]).any()
    assert (first["image"] != held_out[7]["image"]).any()
    assert first["image"].shape == (SIDE, SIDE, 3)


def test_every_class_is_there_and_most_of_a_scene_is_photo():
    maps = get_label_maps(LabelMapsConfig(name="digit_scenes"))
    labels = np.stack([maps.open("val")[i]["label"] for i in range(60)])
    counts = np.bincount(labels.ravel(), minlength=11)
    assert len(counts) == len(maps.class_names) == 11
    assert counts.min() > 0
    assert 0.7 < counts[0] / counts.sum() < 0.95


def test_digits_are_drawn_where_they_are_labelled():
    """Along the edges of labels, brightness changes more than elsewhere."""
    at_edges, elsewhere = [], []
    for index in range(10):
        scene = Scenes("val")[index]
        ink, steps = scene["label"] > 0, np.abs(np.diff(scene["image"].mean(-1), axis=1))
        edge = ink[:, 1:] != ink[:, :-1]
        at_edges.append(steps[edge])
        elsewhere.append(steps[~edge])
    assert np.concatenate(at_edges).mean() > 2 * np.concatenate(elsewhere).mean()
