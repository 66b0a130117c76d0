"""Scores of weights on label maps: ``natjax eval --weights`` for segmentors."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from rich.table import Table

from natjax.train import console
from natjax.train.cluster.processes import Host
from natjax.train.config.settings import MeshConfig, ModelConfig
from natjax.train.data.prepared import find_version
from natjax.train.engine.compile import compile_evaluation
from natjax.train.engine.evaluate import evaluate
from natjax.train.engine.sharding import make_mesh, replicated, request_devices
from natjax.train.engine.task import Scores
from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.config import LabelMapsConfig, SegmentationConfig
from natjax.train.tasks.segmentation.datasets.scene_parse import NAME as PREPARED
from natjax.train.tasks.segmentation.task import Segmentation
from natjax.train.tasks.segmentation.weights import read_weights

# Those of the published scores.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclasses.dataclass(frozen=True)
class WeightsEvaluation:
    """Scores of weights.

    Attributes:
      task: With the model and the data set.
      scores: Over all held-out images that can be read.
      report: What was loaded.
    """

    task: Segmentation
    scores: Scores
    report: str


def evaluate_weights(
    weights: str, data_dir: Path | None, *, model: str, devices: int = 1, multi_scale: bool = False
) -> WeightsEvaluation:
    """Evaluate weights over all held-out images of a folder, seen as published.

    Args:
      weights: As for `natjax.load_weights`.
      data_dir: Folder of images and label maps, or what TFDS has prepared of ADE20K.
      model: Name of the segmentor.
      devices: Devices, each of which has an image at a time.
      multi_scale: Average over six scales and mirror images.

    Raises:
      UserError: the folder or a number is wrong, or the weights are of other classes.
      WeightsError: the weights cannot be found or read, or do not fit.
    """
    if data_dir is None:
        raise UserError("eval --weights needs --data.dir FOLDER, with images and label maps")
    console.quiet_libraries()
    task = Segmentation(_config(data_dir, model, devices, multi_scale))
    request_devices(task.config.mesh)
    mesh = make_mesh(task.config.mesh)
    shapes = nnx.eval_shape(task.build)
    classes = len(task.maps.class_names)
    arrays, report = read_weights(weights, model, shapes, classes)
    params, statistics = jax.eval_shape(task.init)
    missing = [name for name in params | statistics if name not in arrays]
    if missing:
        raise UserError(
            f"{weights} must be of a whole segmentor with the {classes} classes of"
            f" {task.maps.name}; it has no {missing[0]} that fits"
        )
    values = [
        {
            name: jax.device_put(np.asarray(arrays[name], leaf.dtype), replicated(mesh))
            for name, leaf in part.items()
        }
        for part in (params, statistics)
    ]
    compiled = compile_evaluation(task, mesh)
    found = evaluate(task, compiled, {"raw": tuple(values)}, task.eval_batches(Host()))
    return WeightsEvaluation(task, found["raw"], report)


def _config(
    data_dir: Path, model: str, devices: int, multi_scale: bool
) -> SegmentationConfig:
    is_prepared = find_version(data_dir.expanduser(), PREPARED) is not None
    data = LabelMapsConfig(
        name=PREPARED if is_prepared else "label_maps",
        dir=data_dir,
        scales=SCALES if multi_scale else (1.0,),
        flip=multi_scale,
    )
    return SegmentationConfig(
        model=ModelConfig(name=model),
        data=data,
        mesh=MeshConfig(data=devices),
        batch_size=2 * devices,
    )


def evaluation_table(found: WeightsEvaluation) -> Table:
    """Return the scores, of all classes together and of each."""
    table = Table(title=found.task.title(found.scores), title_justify="left")
    for heading in ("class", "IoU", "accuracy", "pixels"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    detail, values = found.scores.detail, found.scores.values
    columns = zip(detail.iou, detail.class_accuracy, detail.counts.sum(1), strict=True)
    for name, (iou, accuracy, pixels) in zip(found.task.maps.class_names, columns, strict=True):
        table.add_row(name, f"{iou:.2%}", f"{accuracy:.2%}", f"{pixels:,}")
    table.add_section()
    pixels = f"{int(detail.counts.sum()):,}"
    table.add_row("mean", f"{values['miou']:.2%}", f"{values['macc']:.2%}", pixels)
    table.add_row("of all pixels", "", f"{values['aacc']:.2%}", "")
    return table
