"""Adds up an evaluation of segmentation, on the host."""

from collections.abc import Mapping

import numpy as np

from natjax.train.engine.task import NoExamplesError, Scores
from natjax.train.tasks.segmentation.scores import SegmentationScores


class SegmentationEvaluator:
    """Sums counts of pixels.

    Args:
      classes: Number of classes.
    """

    def __init__(self, classes: int):
        self._counts = np.zeros((classes, classes), np.int64)
        self._images = 0

    def add(self, measured: Mapping[str, np.ndarray]) -> None:
        """Count a batch: ``counts`` of pixels by label and prediction, and ``images``."""
        self._counts += measured["counts"].astype(np.int64)
        self._images += int(measured["images"])

    def result(self) -> Scores:
        """Return mIoU, which ranks, mean accuracy of the classes, and accuracy of pixels.

        Raises:
          NoExamplesError: no pixel has a label.
        """
        if not self._counts.sum():
            raise NoExamplesError("no held-out pixel has a label")
        found = SegmentationScores(self._counts)
        values = {"miou": found.miou, "macc": found.macc, "aacc": found.aacc}
        return Scores(values=values | {"images": self._images}, primary="miou", detail=found)
