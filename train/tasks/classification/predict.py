"""Classes of image files, by the weights of a run: the command ``natjax predict``."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps
from rich.table import Table

from natjax.train import console
from natjax.train.checkpoint.checkpointer import restore
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.config.settings import DataConfig
from natjax.train.data.datasets import DatasetSpec, get_spec
from natjax.train.data.images import Pixels, add_border, center_view, to_pixels, with_channels
from natjax.train.engine.functional import build_model
from natjax.train.engine.state import weights_item
from natjax.train.engine.step import Network, probabilities
from natjax.train.errors import UserError

# Pillow hands Encapsulated PostScript to an interpreter of programs; a picture should not be one.
_REFUSED_FORMATS = {"EPS"}
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network with its data set's view of images.

    Attributes:
      spec: The data set.
      data: The view of evaluation.
      probabilities: ``(uint8[B, H, W, C]) -> float32[B, L]``.
    """

    spec: DatasetSpec
    data: DataConfig
    probabilities: Callable[[np.ndarray], Float[np.ndarray, "B L"]]

    def top(self, row: Float[np.ndarray, " L"], count: int) -> list[tuple[str, float]]:
        """Return the `count` most likely classes with their probabilities, most likely first."""
        best = np.argsort(-row, kind="stable")[:count]
        return [(self.spec.class_names[index], float(row[index])) for index in best]


def load_predictor(path: Path, *, step: int | None = None, weights: str = "ema") -> Predictor:
    """Return a predictor with the weights of a run, on one device.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      weights: ``"ema"`` (averaged) or ``"raw"``.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    console.quiet_libraries()
    folder = RunFolder(path)
    config = folder.read_config()
    spec = get_spec(config.data)
    model = build_model(config.model, spec, config.seed)
    item = weights_item(config, weights)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        jax.eval_shape(model.init),
    )
    restored = restore(folder.checkpoints, {item: target}, step=step)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet; train until the first one is written")
    network = Network(model, spec.mean, spec.std)
    jitted = jax.jit(functools.partial(probabilities, network, restored.items[item]))
    return Predictor(spec, config.data, lambda images: np.asarray(jitted(images)))


def read_image(path: Path, spec: DatasetSpec, data: DataConfig) -> Pixels:
    """Read an image file of any size as the data set would give it to the network.

    Upright by its EXIF orientation; of an animation the first frame.

    Raises:
      UserError: the file is no image, is damaged, or would unfold to an unreasonable size.
    """
    Image.init()
    formats = [name for name in Image.OPEN if name not in _REFUSED_FORMATS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                upright = ImageOps.exif_transpose(image)
                decoded = add_border(with_channels(upright, spec.channels), spec.border)
                return to_pixels(center_view(decoded, data))
    except Exception as error:  # decoders of hostile files raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read image {path}: {reason}") from error


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
