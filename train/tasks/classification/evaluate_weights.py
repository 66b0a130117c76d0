"""Accuracy of weights on a labelled folder of photos: ``natjax eval --weights``."""

import dataclasses
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import numpy as np
from flax import nnx
from rich.progress import track
from rich.table import Table

from natjax.backbones.isotropic import Isotropic
from natjax.backbones.nat import NAT, NATConfig
from natjax.preprocessing import Preprocessing, preprocessing
from natjax.train import console
from natjax.train.cluster.processes import Host
from natjax.train.config.settings import MeshConfig, ModelConfig
from natjax.train.data.pipeline import Batch, test_dataset
from natjax.train.engine.compile import compile_evaluation
from natjax.train.engine.evaluate import evaluate
from natjax.train.engine.network import split_network
from natjax.train.engine.sharding import make_mesh, replicated, request_devices
from natjax.train.engine.task import NoExamplesError, Scores
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages
from natjax.train.tasks.classification.photos import Photos, open_photos, read_photo
from natjax.train.tasks.classification.task import Classification
from natjax.weights.convert import find_model, model_shapes
from natjax.weights.load import fit_arrays, open_weights
from natjax.weights.published import PUBLISHED


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsEvaluation:
    """Accuracy of weights.

    Attributes:
      model: Name of the model.
      where: File of the weights.
      how: How the photos were prepared.
      result: Over all readable photos.
      failures: What could not be read, and why; not counted.
    """

    model: str
    where: str
    how: Preprocessing
    result: Scores
    failures: tuple[str, ...]


def evaluate_weights(
    weights: str,
    data_dir: Path | None,
    *,
    model: str | None = None,
    batch_size: int = 64,
    devices: int = 1,
) -> WeightsEvaluation:
    """Evaluate weights over all photos of a folder, prepared as published for the model.

    Args:
      weights: As for `natjax.load_weights`.
      data_dir: As for `natjax.train.tasks.classification.photos.open_photos`.
      model: Name of the model; None where the weights tell.
      batch_size: Photos at once, over all devices.
      devices: Devices to split each batch over.

    Raises:
      UserError: a folder or a number is wrong.
      WeightsError: the weights cannot be found or read, or may be of several models.
    """
    if data_dir is None:
        raise UserError("eval --weights needs --data.dir FOLDER, with a folder for each class")
    if batch_size < 1 or batch_size % devices:
        raise UserError(f"--batch-size must be a multiple of --devices={devices}, got {batch_size}")
    console.quiet_libraries()
    photos = open_photos(data_dir)
    request_devices(MeshConfig(data=devices))
    mesh = make_mesh(MeshConfig(data=devices))

    state = open_weights(weights, models=[] if model is None else [model])
    name, config = find_model(state, model)
    if name is None:
        raise UserError(f"{state.where} is of no published model; its preprocessing is not known")
    _check_classes(photos, config.num_classes, data_dir)
    arrays, report = fit_arrays(state, model_shapes(config))
    family = NAT if isinstance(config, NATConfig) else Isotropic
    network = split_network(lambda: family(config, rngs=nnx.Rngs(0)))
    params = {
        key: jax.device_put(array.astype(np.float32), replicated(mesh))
        for key, array in arrays.items()
    }

    how = preprocessing(name)
    task = Classification(
        ClassificationConfig(
            model=ModelConfig(name=name), data=ImagesConfig(name="photos", image_size=how.size)
        ),
        _spec_of(photos, how),
        network,
    )
    failures = _Failures()
    evaluator = compile_evaluation(task, mesh)
    with warnings.catch_warnings():
        # Of Pillow, about odd metadata; set here, as filters are no matter of single threads.
        warnings.filterwarnings("ignore", module="PIL")
        batches = _with_progress(_batches(photos, how, batch_size, failures))
        try:
            result = evaluate(task, evaluator, {"raw": (params, {})}, batches)["raw"]
        except NoExamplesError as error:
            first = failures.sorted()[0]
            raise UserError(f"none of {photos.count} photos can be read; {first}") from error
    return WeightsEvaluation(
        model=name, where=report.path, how=how, result=result, failures=failures.sorted()
    )


def _spec_of(photos: Photos, how: Preprocessing) -> LabelledImages:
    """The photos as a data set that is opened already."""

    def opened(*_: object) -> None:
        raise AssertionError("batches are made here")

    return LabelledImages(
        name="photos",
        channels=3,
        class_names=tuple(map(str, range(photos.classes))),
        mean=how.mean,
        std=how.std,
        train_split="",
        test_split="",
        builder=opened,
    )


def _check_classes(photos: Photos, classes: int, folder: Path) -> None:
    if photos.classes == classes:
        return
    validation = next((p for p in (folder / "val", folder / "validation") if p.is_dir()), None)
    hint = f"; did you mean {validation}?" if validation else ""
    raise UserError(
        f"{folder} holds {photos.classes} classes, the weights know {classes}; a class is the place"
        f" of its folder's name in sorted order, so every class must have one{hint}"
    )


class _Failures:
    """What could not be read, collected from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[int, str] = {}

    def add(self, index: int, text: str) -> None:
        with self._lock:
            self._found[index] = text

    def sorted(self) -> tuple[str, ...]:
        return tuple(text for _, text in sorted(self._found.items()))


def _batches(
    photos: Photos, how: Preprocessing, batch_size: int, failures: _Failures
) -> grain.MapDataset:
    """Every photo once, in order; what is unreadable or fills the last batch up is masked."""

    def example(index: int) -> Batch:
        pixels, counts = np.zeros((how.size, how.size, 3), np.uint8), True
        try:
            with photos.open(index) as file:
                pixels = read_photo(file, how)
        except Exception as error:  # decoders of damaged files raise nearly anything
            failures.add(index, f"cannot read {photos.name(index)}: {error}")
            counts = False
        label = photos.label(index) if counts else 0
        return {"image": pixels, "label": np.int32(label), "mask": np.bool_(counts)}

    return test_dataset(photos.count, example, batch_size=batch_size, host=Host())


def _with_progress(batches: grain.MapDataset) -> Iterator[Batch]:
    return iter(
        track(
            batches,
            "Evaluating",
            total=len(batches),
            console=console.console(),
            disable=not console.is_terminal(),
            transient=True,
        )
    )


def show_weights_evaluation(done: WeightsEvaluation) -> None:
    """Print the result, and what could not be read on standard error."""
    scores = done.result.values
    table = Table(title=f"{done.model}, {scores['images']:,} images", title_justify="left")
    for heading in ("top-1", "top-5", "loss (nats)"):
        table.add_column(heading, justify="right")
    table.add_row(f"{scores['top1']:.3%}", f"{scores['top5']:.3%}", f"{scores['loss']:.4f}")
    console.say(table)
    how = done.how
    console.say(f"{done.where}; bicubic to {how.short_side}, crop {how.size}")
    published = [p for p in PUBLISHED if p.model == done.model and p.weights == "imagenet1k"]
    for entry in published:
        console.say(f"published for the weights {entry.address}: {entry.accuracy}")
    for failure in done.failures:
        console.warn(failure)
