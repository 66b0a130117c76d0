"""Scores against mmsegmentation's evaluator, and their rules."""

import csv

import goldens
import numpy as np
import pytest

from natjax.train.tasks.segmentation.scores import (
    SegmentationScores,
    count_pixels,
    write_class_scores,
)
from natjax.train.tasks.segmentation.transforms import without_zero


def _golden():
    arrays = goldens.load("seg_miou")
    images = [(arrays[f"label{i}"], arrays[f"pred{i}"]) for i in range(3)]
    return arrays, images, int(arrays["num_classes"])


def test_official_scores():
    arrays, images, classes = _golden()
    scores = SegmentationScores(sum(count_pixels(*image, classes) for image in images))
    np.testing.assert_allclose(scores.iou, arrays["IoU"], rtol=1e-6)
    np.testing.assert_allclose(scores.class_accuracy, arrays["Acc"], rtol=1e-6)
    assert scores.aacc == pytest.approx(float(arrays["aAcc"]), rel=1e-6)
    reported = goldens.record("seg_miou", "reported")
    assert round(100 * scores.miou, 2) == reported["mIoU"]
    assert round(100 * scores.macc, 2) == reported["mAcc"]
    assert round(100 * scores.aacc, 2) == reported["aAcc"]


def test_official_areas_of_each_image():
    arrays, images, classes = _golden()
    for i, image in enumerate(images):
        counts = count_pixels(*image, classes)
        np.testing.assert_array_equal(np.diag(counts), arrays["intersect"][i])
        np.testing.assert_array_equal(counts.sum(0), arrays["pred_area"][i])
        np.testing.assert_array_equal(counts.sum(1), arrays["label_area"][i])


def test_official_labels_without_zero():
    arrays, _, _ = _golden()
    for i in range(3):
        np.testing.assert_array_equal(without_zero(arrays[f"raw_label{i}"]), arrays[f"label{i}"])


def test_a_class_that_is_nowhere_is_left_out():
    labels, guesses = np.array([0, 0, 1, 255]), np.array([0, 1, 1, 2])
    scores = SegmentationScores(count_pixels(labels, guesses, 4))
    np.testing.assert_array_equal(scores.iou, [0.5, 0.5, np.nan, np.nan])
    assert scores.miou == 0.5
    nothing = SegmentationScores(count_pixels(labels * 0 + 255, guesses, 4))
    assert np.isnan([nothing.miou, nothing.macc, nothing.aacc]).all()


@pytest.mark.parametrize(
    ("labels", "guesses", "message"),
    [
        ([0, 7], [0, 0], r"labels must be in 0 to 2 \(or 255\), got 7"),
        ([0, -1], [0, 0], "labels must .* got -1"),
        ([0, 1], [0, 3], "guesses must .* got 3"),
    ],
)
def test_numbers_that_are_no_class(labels, guesses, message):
    with pytest.raises(ValueError, match=message):
        count_pixels(np.array(labels), np.array(guesses), 3)


def test_tables(tmp_path):
    counts = count_pixels(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    names = ("sky", "sea", "sand")
    write_class_scores(SegmentationScores(counts), names, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "label": "0",
        "name": "sky",
        "iou": "50.00",
        "accuracy": "50.00",
        "pixels": "2",
    }
    assert rows[2]["iou"] == "nan"
