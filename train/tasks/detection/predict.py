"""Objects in image files, drawn onto them with masks, names and scores."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.table import Table

from natjax.train.data.images import Pixels, read_upright, to_pixels
from natjax.train.errors import UserError
from natjax.train.files import picture_paths
from natjax.train.tasks.detection.examples import view
from natjax.train.tasks.detection.pictures import LEAST_SCORE, draw_found
from natjax.train.tasks.detection.task import Detection

_NAMED = 6


def predict_files(
    task: Detection,
    weights: tuple[Any, Any],
    paths: Sequence[Path],
    out: Path,
    least_score: float = LEAST_SCORE,
) -> tuple[Table, list[UserError]]:
    """Write a picture for each image; unreadable ones are left out and reported.

    Args:
      task: With the network and the names of its classes.
      weights: Parameters and statistics.
      paths: Image files.
      out: Folder to write into; made where it is not there.
      least_score: Of the objects that are drawn.

    Returns:
      A table of the images with what was found in them; one error for each other image.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = Table("image", "picture", "objects")
    jitted, failures = jax.jit(task.predict), []
    for path, target in zip(paths, picture_paths(paths, out), strict=True):
        try:
            pixels = to_pixels(read_upright(path, 3))
        except UserError as error:
            failures.append(error)
            continue
        found = _find(task, jitted, weights, pixels)
        drawn = draw_found(pixels, found, task.classes, least_score)
        Image.fromarray(drawn).save(target)
        shown = found["labels"][found["valid"] & (found["scores"] >= least_score)]
        table.add_row(str(path), str(target), _most(shown, task.classes))
    return table, failures


def _find(
    task: Detection, jitted: Any, weights: tuple[Any, Any], pixels: Pixels
) -> dict[str, np.ndarray]:
    rows = {name: value[None] for name, value in view(pixels, task.config.augment).items()}
    found = jax.device_get(jitted(*weights, rows))
    return {name: values[0] for name, values in found.items()}


def _most(labels: np.ndarray, names: Sequence[str]) -> str:
    """How many objects there are of each class, most first."""
    counts = collections.Counter(names[label] for label in labels.tolist())
    words = [f"{count} {name}" for name, count in counts.most_common(_NAMED)]
    return ", ".join(words) or "none"
