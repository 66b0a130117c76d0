"""Scores of segmentation, of exact counts: intersection over union, accuracy of classes and pixels.

What mmsegmentation's evaluator reports: sums over the pixels of all images, not means of images.
"""

import csv
import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer
from rich.table import Table

from natjax.train.files import write_whole

IGNORE = 255


def count_pixels(
    labels: Integer[np.ndarray, "*S"],
    guesses: Integer[np.ndarray, "*S"],
    classes: int,
    *,
    ignore: int = IGNORE,
) -> Int[np.ndarray, "L L"]:
    """Return how many pixels of each label (rows) have each predicted class (columns).

    Args:
      labels: Class of each pixel, or `ignore`.
      guesses: Predicted class of each pixel.
      classes: Number of classes.
      ignore: Label of pixels that do not count.

    Raises:
      ValueError: a label or prediction that is none of the classes.
    """
    counted = labels != ignore
    labels, guesses = labels[counted].astype(np.int64), guesses[counted].astype(np.int64)
    for name, values in (("labels", labels), ("guesses", guesses)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            wrong = values[(values < 0) | (values >= classes)][0]
            raise ValueError(f"{name} must be in 0 to {classes - 1} (or {ignore}), got {wrong}")
    counts = np.bincount(labels * classes + guesses, minlength=classes * classes)
    return counts.reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class SegmentationScores:
    """Scores by class and in all.

    Attributes:
      counts: Pixels of each label (rows) with each predicted class (columns).
    """

    counts: Int[np.ndarray, "L L"]

    @property
    def iou(self) -> Float[np.ndarray, " L"]:
        """Intersection over union of each class; NaN for one that is nowhere."""
        hits = np.diag(self.counts)
        return _quotients(hits, self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def class_accuracy(self) -> Float[np.ndarray, " L"]:
        """Part of the pixels of each class that are found; NaN for one that no label has."""
        return _quotients(np.diag(self.counts), self.counts.sum(1))

    @property
    def miou(self) -> float:
        """Mean intersection over union of the classes that are somewhere."""
        return _mean(self.iou)

    @property
    def macc(self) -> float:
        """Mean accuracy of the classes that labels have."""
        return _mean(self.class_accuracy)

    @property
    def aacc(self) -> float:
        """Part of all pixels that are right."""
        return float(_quotients(np.trace(self.counts), self.counts.sum()))


def _quotients(part: Any, whole: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(part, whole))


def _mean(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN, where all are
        return float(np.nanmean(values))


def class_table(scores: SegmentationScores, class_names: Sequence[str]) -> Table:
    """Return the scores of each class as a table to show."""
    table = Table("class", box=None)
    for heading in ("IoU", "accuracy", "pixels"):
        table.add_column(heading, justify="right")
    columns = zip(scores.iou, scores.class_accuracy, scores.counts.sum(1), strict=True)
    for name, (iou, accuracy, pixels) in zip(class_names, columns, strict=True):
        table.add_row(name, f"{iou:.2%}", f"{accuracy:.2%}", f"{pixels:,}")
    return table


def write_class_scores(scores: SegmentationScores, class_names: Sequence[str], path: Path) -> None:
    """Write a CSV file with the scores of each class, in percent, and its pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "name", "iou", "accuracy", "pixels"))
    columns = zip(scores.iou, scores.class_accuracy, scores.counts.sum(1), strict=True)
    for label, (iou, accuracy, pixels) in enumerate(columns):
        row = (f"{100 * iou:.2f}", f"{100 * accuracy:.2f}", int(pixels))
        writer.writerow((label, class_names[label], *row))
    write_whole(path, text.getvalue())
