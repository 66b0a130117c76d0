"""Weights of segmentors as a task, for ``natjax eval --weights``."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from natjax.train.config.settings import ModelConfig
from natjax.train.data.prepared import find_version
from natjax.train.errors import UserError
from natjax.train.tasks.initial_weights import read_weights, take_whole
from natjax.train.tasks.segmentation.config import LabelMapsConfig, SegmentationConfig
from natjax.train.tasks.segmentation.datasets.scene_parse import NAME as PREPARED
from natjax.train.tasks.segmentation.task import Segmentation
from natjax.weights.published import PUBLISHED

# Of the published multi-scale scores.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsTask:
    """Weights, and the held-out images of a folder.

    Attributes:
      task: With the model and the data set.
      params: Parameters by name.
      statistics: Running statistics by name.
      model: Name of the model.
    """

    task: Segmentation
    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    model: str

    def notes(self) -> list[str]:
        """Return a line on what is published of the model, and how images are seen."""
        data, frame = self.task.config.data, self.task.config.augment.frame
        scales = ", ".join(f"{scale:g}" for scale in data.scales)
        mirrored = " and mirror images" if data.flip else ""
        return [
            f"images in {frame[0]} x {frame[1]} times {scales}{mirrored}",
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
    multi_scale: bool = False,
    data: dict[str, Any],
    **settings: Any,
) -> WeightsTask:
    """Open weights, and the images of a folder, which are seen as published.

    Args:
      weights: As for `natjax.load_weights`.
      data_dir: Folder of images and label maps, or of ADE20K as TFDS has prepared it.
      model: Name of the segmentor.
      multi_scale: Whether to average over the published scales and mirror images.
      data: How images are read.
      settings: More of `SegmentationConfig`.

    Raises:
      UserError: the folder or a number is wrong, or the weights are of other classes.
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    if data_dir is None:
        raise UserError("eval --weights needs --data.dir FOLDER, with images and label maps")
    is_prepared = find_version(data_dir.expanduser(), PREPARED) is not None
    views = {"scales": SCALES, "flip": True} if multi_scale else {}
    maps = LabelMapsConfig(
        name=PREPARED if is_prepared else "label_maps", dir=data_dir, **views, **data
    )
    task = Segmentation(SegmentationConfig(model=ModelConfig(name=model), data=maps, **settings))
    arrays, _ = read_weights(weights, model, nnx.eval_shape(task.build))
    what = f"a whole {model} with the {len(task.maps.class_names)} classes of {task.maps.name}"
    params, statistics = (
        take_whole(arrays, part, weights, what) for part in jax.eval_shape(task.init)
    )
    return WeightsTask(task=task, params=params, statistics=statistics, model=model)
