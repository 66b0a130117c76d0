"""Adds up an evaluation of detection, on the host: average precision as COCO defines it."""

from collections.abc import Mapping

import numpy as np

from natjax.train.engine.task import NoExamplesError, Scores
from natjax.train.tasks.detection.average_precision import Detections, score_detections
from natjax.train.tasks.detection.datasets.registry import Split
from natjax.train.tasks.detection.paste import packed_masks


class DetectionEvaluator:
    """Collects the detections of all images, and compares them with the objects at the end.

    Args:
      split: The images that are evaluated on.
    """

    def __init__(self, split: Split):
        self._split = split
        self._found: dict[int, Detections] = {}

    def add(self, measured: Mapping[str, np.ndarray]) -> None:
        """Take the detections of a batch.

        Args:
          measured: Of the whole batch: ``mask`` and ``id`` as evaluation batches have them;
            ``boxes`` [B, K, 4], corners in pixels of the original images; ``scores``, ``labels``
            and ``valid`` [B, K]; ``masks`` [B, K, S, S], probabilities on a grid in each box.
        """
        for row in np.flatnonzero(measured["mask"]):
            index, valid = int(measured["id"][row]), measured["valid"][row]
            boxes = measured["boxes"][row][valid].astype(np.float32)
            info = self._split.info(index)
            self._found[index] = Detections(
                boxes=boxes,
                scores=measured["scores"][row][valid].astype(np.float32),
                labels=measured["labels"][row][valid].astype(np.int32),
                packed=packed_masks(
                    measured["masks"][row][valid], boxes, (info.height, info.width)
                ),
            )

    def result(self) -> Scores:
        """Return AP of boxes, which ranks, and of masks, with AP50, AP75 and by size.

        ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small``, ``box_ap_medium``,
        ``box_ap_large``, the same of ``mask``, and ``images``; a size that no object has is left
        out. The detail is a `natjax.train.tasks.detection.average_precision.DetectionScores`.

        Raises:
          NoExamplesError: no image counts, or none of those that do has an object.
        """
        if not self._found:
            raise NoExamplesError("no held-out image can be read")
        scores = score_detections(self._split.annotations, self._found)
        if "box_ap" not in scores.values:
            raise NoExamplesError("no held-out image has an object that is not a crowd")
        values = {**scores.values, "images": len(self._found)}
        return Scores(values=values, primary="box_ap", detail=scores)
