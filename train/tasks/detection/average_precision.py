"""Average precision of boxes and masks by pycocotools, whose numbers are the official ones."""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32
from rich.table import Table

from natjax.train.files import write_whole
from natjax.train.tasks.detection.datasets.annotations import Annotations

# What pycocotools calls the kinds, and the names of its first six numbers in ours.
_KINDS = {"box": "bbox", "mask": "segm"}
_NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in an image, in the order of the detector.

    Attributes:
      boxes: Left, upper, right and lower border, in pixels of the original image.
      scores: In [0, 1].
      labels: Classes, from 0 on.
      packed: Packed run lengths of the masks.
    """

    boxes: Float32[np.ndarray, "N 4"]
    scores: Float32[np.ndarray, " N"]
    labels: Int32[np.ndarray, " N"]
    packed: list[bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """Scores of all classes together and one by one, and what they are scores of.

    Attributes:
      values: As `natjax.train.tasks.detection.evaluator.DetectionEvaluator.result` names them.
      by_class: AP of boxes and of masks of each class; nan of a class without objects.
      annotations: Of the split.
      found: The detections by image.
    """

    values: Mapping[str, float]
    by_class: Float[np.ndarray, "C 2"]
    annotations: Annotations = dataclasses.field(repr=False)
    found: Mapping[int, Detections] = dataclasses.field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.annotations.classes

    def table(self) -> Table:
        """Return the scores of each class, to be printed."""
        table = Table("class", title="average precision of each class", title_justify="left")
        for heading in _KINDS:
            table.add_column(f"{heading} AP", justify="right")
        for name, row in zip(self.classes, self.by_class, strict=True):
            table.add_row(name, *("-" if np.isnan(ap) else f"{ap:.1%}" for ap in row))
        return table

    def write_classes(self, path: Path) -> None:
        """Write the scores of each class as CSV."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("class", "box_ap", "mask_ap"))
        for name, row in zip(self.classes, self.by_class, strict=True):
            table.writerow((name, *(f"{ap:.6f}" for ap in row)))
        write_whole(path, text.getvalue())

    def write_results(self, path: Path) -> None:
        """Write the detections in COCO's format of results, as its evaluation server takes them."""
        write_whole(path, json.dumps(results_of(self.annotations, self.found)))


def score_detections(annotations: Annotations, found: Mapping[int, Detections]) -> DetectionScores:
    """Compare detections with the objects of the images that they are of.

    Args:
      annotations: Of the split.
      found: Detections by image; an image that is not here does not count.

    Returns:
      Scores; those of a size without objects are left out, all where there are none.
    """
    truth, results = _truth(annotations, sorted(found)), results_of(annotations, found)
    values: dict[str, float] = {}
    by_class = []
    for name, kind in _KINDS.items():
        stats, precision = _evaluate(truth, results, kind)
        named = zip(_NUMBERS, stats.tolist(), strict=False)
        values |= {f"{name}_{number}": value for number, value in named if value >= 0}
        by_class.append(_class_precision(precision))
    return DetectionScores(
        values=values, by_class=np.stack(by_class, axis=1), annotations=annotations, found=found
    )


def results_of(annotations: Annotations, found: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Return detections in COCO's format, image by image.

    Args:
      annotations: Of the split.
      found: Detections by image.
    """
    return [row for i in sorted(found) for row in _results(annotations, i, found[i])]


def _results(annotations: Annotations, index: int, found: Detections) -> list[dict[str, Any]]:
    """Detections of an image as COCO writes them."""
    size = annotations.sizes[index].tolist()
    boxes = found.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    columns = (boxes.tolist(), found.scores.tolist(), found.labels, found.packed)
    return [
        {
            "image_id": int(annotations.image_ids[index]),
            "category_id": int(annotations.category_ids[label]),
            "bbox": box,
            "score": score,
            "segmentation": {"size": size, "counts": packed.decode()},
        }
        for box, score, label, packed in zip(*columns, strict=True)
    ]


def _truth(annotations: Annotations, indices: list[int]) -> dict[str, Any]:
    """The objects of images as COCO writes them.

    Annotations are numbered anew, from 1 on: pycocotools takes an object of id 0 for none.
    """
    images, objects = [], []
    for index in indices:
        image, size = int(annotations.image_ids[index]), annotations.sizes[index].tolist()
        images.append({"id": image, "height": size[0], "width": size[1]})
        for number in range(int(annotations.first[index]), int(annotations.first[index + 1])):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": int(annotations.category_ids[annotations.labels[number]]),
                    "bbox": annotations.boxes[number].tolist(),
                    "area": float(annotations.areas[number]),
                    "iscrowd": int(annotations.crowd[number]),
                    "segmentation": {"size": size, "counts": annotations.packed(number)},
                }
            )
    names = zip(annotations.category_ids.tolist(), annotations.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in names]
    return {"images": images, "annotations": objects, "categories": categories}


def _evaluate(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str
) -> tuple[Float[np.ndarray, " 12"], Float[np.ndarray, "T R C A M"]]:
    """The numbers and the precision of pycocotools for ``"bbox"`` or ``"segm"``."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools writes into them. Of masks that had a box, it would take the size of the box.
    left_out = "bbox" if kind == "segm" else ""
    results = [{key: row[key] for key in row if key != left_out} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        # `loadRes` wants one result at least.
        guessed = known.loadRes(results) if results else COCO()
        evaluation = COCOeval(known, guessed, kind)
        evaluation.params.imgIds = [image["id"] for image in truth["images"]]
        evaluation.params.catIds = [category["id"] for category in truth["categories"]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


def _class_precision(precision: Float[np.ndarray, "T R C A M"]) -> Float[np.ndarray, " C"]:
    """AP of each class over objects of all sizes; nan where it has none."""
    of_all = precision[:, :, :, 0, -1]
    has_objects = of_all[0, 0] > -1
    return np.where(has_objects, of_all.mean(axis=(0, 1)), np.nan)
