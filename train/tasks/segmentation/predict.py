"""Classes of the pixels of image files, by the weights of a run, as overlays with a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from natjax.train.data.images import Pixels, read_upright, to_pixels
from natjax.train.errors import UserError
from natjax.train.files import picture_paths
from natjax.train.tasks.segmentation.examples import view_at_scales
from natjax.train.tasks.segmentation.pictures import plot_overlay
from natjax.train.tasks.segmentation.task import Segmentation

_NAMED = 3


def predict_files(
    task: Segmentation, weights: tuple[Any, Any], paths: Sequence[Path], out: Path
) -> tuple[Table, list[UserError]]:
    """Write an overlay for each image; unreadable ones are left out and reported.

    Args:
      task: The task of a run.
      weights: Parameters and statistics.
      paths: Image files.
      out: Folder to write into; made where it is not there.

    Returns:
      A table of the images with the classes of most pixels; one error for each other image.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = Table("image", "overlay", "classes")
    jitted, failures = jax.jit(task.predict), []
    for path, target in zip(paths, picture_paths(paths, out), strict=True):
        try:
            pixels = to_pixels(read_upright(path, 3))
        except UserError as error:
            failures.append(error)
            continue
        classes = _classes(task, jitted, weights, pixels)
        plot_overlay(pixels, classes, task.maps.class_names, target)
        table.add_row(str(path), str(target), _most(classes, task.maps.class_names))
    return table, failures


def _classes(task: Segmentation, jitted: Any, weights: tuple[Any, Any], pixels: Pixels) -> Any:
    config = task.config
    views = view_at_scales(pixels, config.augment, config.data.scales)
    rows = {name: view[None] for name, view in views.items()}
    shape = np.zeros((1, *pixels.shape[:2]), np.uint8)
    return np.asarray(jitted(*weights, rows | {"label": shape})["classes"][0])


def _most(classes: np.ndarray, names: Sequence[str]) -> str:
    counts = np.bincount(classes.ravel(), minlength=len(names))
    order = [i for i in np.argsort(-counts, kind="stable")[:_NAMED] if counts[i]]
    return ", ".join(f"{names[i]} {counts[i] / classes.size:.0%}" for i in order)
