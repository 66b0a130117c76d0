"""Average precision of boxes and masks by pycocotools, whose numbers are the official ones."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32
from rich.table import Table

from natjax.train.files import write_whole

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
      classes: Names of the classes.
      by_class: AP of boxes and of masks of each class; nan of a class without objects.
      results: The detections in COCO's format.
    """

    values: Mapping[str, float]
    classes: tuple[str, ...]
    by_class: Float[np.ndarray, "C 2"]
    results: list[dict[str, Any]] = dataclasses.field(repr=False)

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
        rows = [
            f"{json.dumps(name, ensure_ascii=False)},{box:.6f},{mask:.6f}"
            for name, (box, mask) in zip(self.classes, self.by_class, strict=True)
        ]
        write_whole(path, "\n".join(["class,box_ap,mask_ap", *rows]) + "\n")

    def write_results(self, path: Path) -> None:
        """Write the detections in COCO's format of results, as its evaluation server takes them."""
        write_whole(path, json.dumps(self.results))
