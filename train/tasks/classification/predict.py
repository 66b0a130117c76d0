"""Classes of image files, by the weights of a run: the command ``natjax predict``."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from rich.table import Table

from natjax.train.data.images import Pixels, add_border, read_upright, to_pixels
from natjax.train.errors import UserError
from natjax.train.tasks.classification.augment.crop import evaluation_view
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages
from natjax.train.tasks.classification.task import Classification

_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with its data set's view of images.

    Attributes:
      spec: The data set.
      data: The view of evaluation.
      probabilities: ``(uint8[B, H, W, C]) -> float32[B, L]``.
    """

    spec: LabelledImages
    data: ImagesConfig
    probabilities: Callable[[np.ndarray], Float[np.ndarray, "B L"]]

    def top(self, row: Float[np.ndarray, " L"], count: int) -> list[tuple[str, float]]:
        """Return the `count` most likely classes with their probabilities, most likely first."""
        best = np.argsort(-row, kind="stable")[:count]
        return [(self.spec.class_names[index], float(row[index])) for index in best]


def predictor_of(task: Classification, weights: tuple[Any, Any]) -> Predictor:
    """Return a predictor.

    Args:
      task: The task of a run.
      weights: Parameters and statistics.
    """
    jitted = jax.jit(task.predict)

    def probabilities(images: np.ndarray) -> np.ndarray:
        return np.asarray(jitted(*weights, {"image": images})["probabilities"])

    return Predictor(task.spec, task.config.data, probabilities)


def read_image(path: Path, spec: LabelledImages, data: ImagesConfig) -> Pixels:
    """Read an image file of any size as the data set would give it to the network.

    Raises:
      UserError: as for `natjax.train.data.images.read_upright`.
    """
    decoded = add_border(read_upright(path, spec.channels), spec.border)
    return to_pixels(evaluation_view(decoded, data))


def predict_files(
    predictor: Predictor, paths: Sequence[Path], top: int = 5
) -> tuple[dict[Path, list[tuple[str, float]]], list[UserError]]:
    """Predict the classes of image files; unreadable ones are left out and reported.

    Args:
      predictor: The network.
      paths: Image files.
      top: Classes to return for each image.

    Returns:
      For each readable image its most likely ``(class, probability)``; one error for each other.
    """
    pixels, failures = {}, []
    for path in paths:
        try:
            pixels[path] = read_image(path, predictor.spec, predictor.data)
        except UserError as error:
            failures.append(error)
    rows = _in_batches(predictor, list(pixels.values()))
    results = {path: predictor.top(row, top) for path, row in zip(pixels, rows, strict=True)}
    return results, failures


def _in_batches(predictor: Predictor, images: list[Pixels]) -> Iterable[np.ndarray]:
    for start in range(0, len(images), _AT_ONCE):
        yield from predictor.probabilities(np.stack(images[start : start + _AT_ONCE]))


def prediction_table(results: dict[Path, list[tuple[str, float]]]) -> Table:
    """Return the predictions as a table, a group of rows for each image."""
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("", width=20, no_wrap=True)
    for path, best in results.items():
        for rank, (name, share) in enumerate(best):
            bar = "█" * round(20 * share)
            table.add_row(
                str(path) if rank == 0 else "",
                name,
                f"{share:.1%}",
                bar,
                end_section=rank == len(best) - 1,
            )
    return table
