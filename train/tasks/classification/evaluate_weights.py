"""Weights as a task that can be evaluated: ``natjax eval --weights``."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from natjax.preprocessing import Preprocessing, preprocessing
from natjax.registry import FAMILIES, abstract
from natjax.train.config.settings import ModelConfig
from natjax.train.engine.network import split_network
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.held_out import (
    HeldOut,
    held_out_spec,
    open_held_out,
)
from natjax.train.tasks.classification.task import Classification
from natjax.weights.load import fit_arrays, named_params, open_weights
from natjax.weights.published import PUBLISHED
from natjax.weights.structure import find_model

# More threads than this wait for each other.
_MAX_THREADS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsTask:
    """Weights of a published model, and the images to evaluate them on.

    Attributes:
      task: Images prepared as published for the model.
      params: The weights, float32.
      model: Name of the model.
      where: File of the weights.
      how: How the images are prepared.
      statistics: None.
    """

    task: Classification
    params: Mapping[str, np.ndarray]
    model: str
    where: str
    how: Preprocessing
    statistics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return lines on where the weights are from, and what is published of them."""
        published = [p for p in PUBLISHED if p.model == self.model and p.weights == "imagenet1k"]
        return [
            f"{self.where}; bicubic to {self.how.short_side}, crop {self.how.size}",
            *(f"published for the weights {x.address}: {x.accuracy}" for x in published),
        ]


def open_weights_task(
    weights: str, data_dir: Path | None, *, model: str | None = None, **settings: Any
) -> WeightsTask:
    """Open weights, and the images of a folder.

    Args:
      weights: As for `natjax.load_weights`.
      data_dir: As for `natjax.train.tasks.classification.datasets.held_out.open_held_out`.
      model: Name of the model; None where the weights tell.
      settings: Of `ClassificationConfig`; those of ``data`` are how images are read.

    Raises:
      UserError: a folder or a number is wrong.
      WeightsError: the weights cannot be found or read, or may be of several models.
    """
    if data_dir is None:
        raise UserError("eval --weights needs --data.dir FOLDER, with a folder for each class")
    images = open_held_out(data_dir)
    state = open_weights(weights, models=[] if model is None else [model])
    name, config = find_model(state, model)
    if name is None:
        raise UserError(f"{state.where} is of no published model; its preprocessing is not known")
    _check_classes(images, config.num_classes, data_dir)
    params = named_params(abstract(config)).items()
    arrays, report = fit_arrays(state, {key: tuple(param.shape) for key, param in params})
    how = preprocessing(name)
    reading = {"threads": min(_MAX_THREADS, os.cpu_count() or 1)} | settings.pop("data", {})
    task = Classification(
        ClassificationConfig(
            model=ModelConfig(name=name),
            data=ImagesConfig(
                name="held_out", image_size=how.size, crop_pct=how.crop_pct, **reading
            ),
            **settings,
        ),
        held_out_spec(images, how),
        split_network(lambda: FAMILIES[type(config)](config, rngs=nnx.Rngs(0))),
    )
    return WeightsTask(
        task=task,
        params={key: array.astype(np.float32) for key, array in arrays.items()},
        model=name,
        where=report.path,
        how=how,
    )


def _check_classes(images: HeldOut, classes: int, folder: Path) -> None:
    if images.classes == classes:
        return
    validation = next((p for p in (folder / "val", folder / "validation") if p.is_dir()), None)
    hint = f"; did you mean {validation}?" if validation else ""
    raise UserError(
        f"{folder} holds {images.classes} classes, the weights know {classes}; a class is the place"
        f" of its folder's name in sorted order, so every class must have one{hint}"
    )
