"""Weights of detectors as a task, for ``natjax eval --weights`` and ``natjax predict --model``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import natjax
from natjax.train.config.settings import ModelConfig
from natjax.train.data.prepared import find_version
from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import DetectionConfig, ObjectsConfig
from natjax.train.tasks.detection.datasets.registry import open_split
from natjax.train.tasks.detection.task import Detection
from natjax.train.tasks.initial_weights import read_weights, take_whole
from natjax.weights.published import PUBLISHED

_PREPARED = "coco/2017"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsTask:
    """Weights, and what they detect.

    Attributes:
      task: With the model and the data set.
      params: Parameters by name.
      statistics: Running statistics by name.
      model: Name of the model.
    """

    task: Detection
    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    model: str

    def notes(self) -> list[str]:
        """Return a line on how images are seen, and one on what is published of the model."""
        frame = self.task.config.augment.frame
        return [
            f"images in {frame[0]} x {frame[1]}",
            *(
                f"published for {x.address}: {x.accuracy}"
                for x in PUBLISHED
                if x.whole == self.model
            ),
        ]


def open_weights_task(
    weights: str,
    data_dir: Path | None,
    *,
    model: str,
    data: dict[str, Any],
    **settings: Any,
) -> WeightsTask:
    """Open weights, and the validation images of a folder, which are seen as published.

    Args:
      weights: As for `natjax.load_weights`.
      data_dir: Folder of COCO, of data in its format, or of what TFDS has prepared of it.
      model: Name of the detector.
      data: How images are read.
      settings: More of `DetectionConfig`.

    Raises:
      UserError: the folder or a number is wrong, or the weights are of other classes.
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    if data_dir is None:
        raise UserError("eval --weights needs --data.dir FOLDER, with images and annotations")
    is_prepared = find_version(data_dir.expanduser(), _PREPARED) is not None
    images = ObjectsConfig(
        name=_PREPARED if is_prepared else "coco", dir=data_dir, least_padding=True, **data
    )
    config = DetectionConfig(model=ModelConfig(name=model), data=images, **settings)
    return _with_weights(weights, config, open_split(images, "val").classes)


def published_task(weights: str, model: str) -> WeightsTask:
    """Open weights that detect COCO's classes; no data is needed.

    Args:
      weights: As for `natjax.load_weights`.
      model: Name of the detector.

    Raises:
      UserError: there is no such model, or the weights are of other classes.
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    config = DetectionConfig(model=ModelConfig(name=model))
    return _with_weights(weights, config, natjax.labels("coco"))


def _with_weights(weights: str, config: DetectionConfig, classes: Sequence[str]) -> WeightsTask:
    task, model = Detection(config, classes), config.model.name
    arrays, _ = read_weights(weights, model, nnx.eval_shape(task.build))
    what = f"a whole {model} with {len(classes)} classes"
    params, statistics = (
        take_whole(arrays, part, weights, what) for part in jax.eval_shape(task.init)
    )
    return WeightsTask(task=task, params=params, statistics=statistics, model=model)
