"""Average precision against pycocotools' official numbers, and masks against mmdetection's."""

import json

import goldens
import numpy as np
import pytest

from natjax.train.engine.task import NoExamplesError
from natjax.train.tasks.detection.average_precision import (
    Detections,
    results_of,
    score_detections,
)
from natjax.train.tasks.detection.datasets.coco import open_folder
from natjax.train.tasks.detection.datasets.coco_json import read_annotations
from natjax.train.tasks.detection.datasets.digit_scenes import write_scenes
from natjax.train.tasks.detection.evaluator import DetectionEvaluator
from natjax.train.tasks.detection.paste import packed_masks, paste_mask

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def _golden():
    """Annotations, and the detections of each image in an order of their own."""
    annotations = read_annotations(str(goldens.load("coco_eval")["gt_json"]), "golden")
    rows = {number: [] for number in annotations.image_ids.tolist()}
    for row in goldens.record("coco_eval", "dt_json"):
        rows[row["image_id"]].append(row)
    return annotations, [rows[number] for number in annotations.image_ids.tolist()]


def _detections(annotations, rows):
    labels = {number: label for label, number in enumerate(annotations.category_ids.tolist())}
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes=boxes,
        scores=np.array([row["score"] for row in rows], np.float32),
        labels=np.array([labels[row["category_id"]] for row in rows], np.int32),
        packed=[row["segmentation"]["counts"].encode() for row in rows],
    )


@pytest.fixture(scope="module")
def scored():
    annotations, rows = _golden()
    found = {index: _detections(annotations, some) for index, some in enumerate(rows)}
    return score_detections(annotations, found)


@pytest.mark.parametrize(("name", "kind"), [("box", "bbox"), ("mask", "segm")])
def test_official_numbers(scored, name, kind):
    """To all digits, though boxes and scores have been float32 in between."""
    stats = goldens.load("coco_eval")[f"{kind}/coco/stats"][:6]
    for key, value in zip(NAMES, stats, strict=True):
        if value < 0:  # no object is of this size
            assert f"{name}_{key}" not in scored.values
        else:
            assert scored.values[f"{name}_{key}"] == value
    column = scored.by_class[:, ("box", "mask").index(name)]
    by_class = goldens.load("coco_eval")[f"{kind}/ap_per_category"]
    np.testing.assert_allclose(column, by_class, rtol=1e-13)  # the sums are in another order


def test_results_are_in_the_format_of_coco(scored, tmp_path):
    scored.write_results(tmp_path / "detections.json")
    written = json.loads((tmp_path / "detections.json").read_text())
    theirs = sorted(goldens.record("coco_eval", "dt_json"), key=lambda row: row["image_id"])
    assert len(written) == len(theirs)
    for ours, row in zip(written, theirs, strict=True):
        assert ours["segmentation"] == row["segmentation"]
        assert (ours["image_id"], ours["category_id"]) == (row["image_id"], row["category_id"])
        np.testing.assert_allclose(ours["bbox"], row["bbox"], rtol=1e-5)
        np.testing.assert_allclose(ours["score"], row["score"], rtol=1e-6)
    scored.write_classes(tmp_path / "classes.csv")
    assert (tmp_path / "classes.csv").read_text().splitlines()[1] == "c1,0.320091,0.332468"
    assert scored.table().row_count == 4


def test_pasted_masks():
    arrays = goldens.load("det_masks")
    size = arrays["paste/prob"].shape[1:]
    pasted = [
        paste_mask(mask, box, size)
        for mask, box in zip(arrays["paste/masks"][:, 0], arrays["paste/boxes"], strict=True)
    ]
    np.testing.assert_array_equal(np.packbits(np.stack(pasted)), arrays["paste/binary"])


@pytest.mark.parametrize("name", ["maskrcnn_nat", "cascade_dinat"])
def test_masks_of_whole_detectors(name):
    """Every pixel of the masks of the official detectors."""
    arrays = goldens.load(f"{name}_infer")
    grids = arrays["rescale/mask_input"]
    if name == "maskrcnn_nat":
        grids = 1 / (1 + np.exp(-grids))
    boxes, order = arrays["rescale/dets"][:, :4], np.argsort(arrays["rescale/labels"], stable=True)
    size = tuple(arrays["meta/ori_shape"][:2].tolist())
    pasted = np.stack([paste_mask(grids[i], boxes[i], size) for i in order])
    assert pasted.shape == tuple(arrays["rescale/result_masks_shape"])
    np.testing.assert_array_equal(np.packbits(pasted), arrays["rescale/result_masks"])


def test_boxes_without_area_have_empty_masks():
    for box in ([5, 5, 5, 9], [7, 5, 3, 9], [-9, -9, -5, -5], [np.nan] * 4):
        mask = paste_mask(np.ones((28, 28), np.float32), np.array(box, np.float32), (20, 30))
        assert mask.shape == (20, 30)
        assert not mask.any()


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"val": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATJAX_DATA", str(folder / "cache"))
        yield open_folder(folder, "val")


def _measured(split, indices, slots=8):
    """A batch of the truth as a detector would say it."""
    rows = []
    for index in indices:
        row = {
            "mask": index is not None,
            "id": np.int32(-1 if index is None else index),
            "boxes": np.zeros((slots, 4), np.float32),
            "scores": np.linspace(0.9, 0.1, slots, dtype=np.float32),
            "labels": np.zeros(slots, np.int32),
            "valid": np.zeros(slots, bool),
            "masks": np.ones((slots, 28, 28), np.float16),
        }
        if index is not None:
            objects = split.objects(index)
            row["boxes"][: len(objects)] = objects.boxes
            row["labels"][: len(objects)] = objects.labels
            row["valid"][: len(objects)] = True
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_perfect_boxes_and_square_masks(split):
    evaluator = DetectionEvaluator(split)
    evaluator.add(_measured(split, [0, 1, 2, 3]))
    evaluator.add(_measured(split, [4, 5, None, None]))
    scores = evaluator.result()
    assert scores.primary == "box_ap"
    assert scores.values["box_ap"] == pytest.approx(1)
    assert scores.values["images"] == 6
    assert scores.values["mask_ap"] < 0.3  # digits are no rectangles


def test_scores_do_not_depend_on_batches_or_their_order(split):
    """So neither on the devices, nor on the hosts, which all see the whole of every batch."""
    found = []
    for batches in ([[0, 1, 2, 3, 4, 5]], [[5, None], [3, 4], [2, 0], [1, None]]):
        evaluator = DetectionEvaluator(split)
        for indices in batches:
            measured = _measured(split, indices)
            measured["labels"] += (measured["boxes"][..., 0] > 60).astype(np.int32)
            measured["labels"] %= 10
            evaluator.add(measured)
        found.append(evaluator.result())
    assert 0 < found[0].values["box_ap"] < 1
    assert found[0].values == found[1].values
    first, second = (results_of(split.annotations, scores.detail.found) for scores in found)
    assert len(first) > 6
    assert first == second


def test_images_that_are_not_there_do_not_count(split):
    evaluator = DetectionEvaluator(split)
    evaluator.add(_measured(split, [0, 2]))
    scores = evaluator.result()
    assert scores.values["box_ap"] == pytest.approx(1)
    assert scores.values["images"] == 2
    assert np.isnan(scores.detail.by_class).any()  # classes that only others have


def test_nothing_found_and_nothing_to_find(split):
    evaluator = DetectionEvaluator(split)
    with pytest.raises(NoExamplesError, match="no held-out image can be read"):
        evaluator.result()
    nothing = _measured(split, [0, 1])
    nothing["valid"][:] = False
    evaluator.add(nothing)
    assert evaluator.result().values["box_ap"] == 0
    assert packed_masks(np.zeros((0, 28, 28)), np.zeros((0, 4), np.float32), (5, 5)) == []


def test_annotations_numbered_from_zero():
    """pycocotools takes an object of id 0 for none, so that its detection would be wrong."""
    image = {"id": 0, "file_name": "a", "height": 20, "width": 30}
    mask = {"size": [20, 30], "counts": [100, 50, 450]}
    entry = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 0, 3, 20], "area": 50}
    content = {
        "images": [image],
        "annotations": [entry | {"segmentation": mask}],
        "categories": [{"id": 0, "name": "cat"}],
    }
    annotations = read_annotations(json.dumps(content), "FILE")
    found = Detections(
        boxes=np.array([[5, 0, 8, 20]], np.float32),
        scores=np.ones(1, np.float32),
        labels=np.zeros(1, np.int32),
        packed=[annotations.packed(0)],
    )
    scores = score_detections(annotations, {0: found})
    assert scores.values["box_ap"] == scores.values["mask_ap"] == pytest.approx(1)
