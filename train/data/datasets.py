"""The one interface between a data set and everything else, and the list of data sets.

A data set is a `DatasetSpec`: how to build it with TFDS, how to decode one image, how to normalise,
and the names of its classes. The pipeline, the step, evaluation and prediction know nothing more.
What is random about training images is the run's: `natjax.train.config.settings.AugmentConfig`.
"""

import contextlib
import dataclasses
import importlib
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.config.settings import DataConfig
from natjax.train.data.prepared import alone
from natjax.train.errors import UserError, did_you_mean
from natjax.train.files import cache_folder


@typing.runtime_checkable
class Source(typing.Protocol):
    """Records with random access: ``image``, encoded, and ``label``."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the record at a place."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What the rest needs to know of a data set.

    Attributes:
      name: As in `DataConfig.name`.
      channels: 1 (gray) or 3 (RGB).
      class_names: Name of each label.
      mean: Mean of each channel, of pixels in [0, 1].
      std: Standard deviation of each channel, of pixels in [0, 1].
      train_split: TFDS split to learn from.
      test_split: TFDS split that is held out.
      border: Black added around every image before anything else, as a part of its short side.
      builder: ``(prepared_dir, original_dir) -> TFDS builder``, writing ArrayRecord; or what takes
        its place, with ``is_prepared()`` and ``source(split)``.
      check_original: Called before preparing; raises `UserError` where files are missing.
    """

    name: str
    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_split: str
    test_split: str
    builder: Callable[[Path, Path | None], Any]
    border: float = 0.0
    check_original: Callable[[Path | None], None] = lambda _: None


# Module of each data set, with its own `get_spec`; imported on use, since builders import TFDS.
_HOME = {
    "digits": "natjax.train.tasks.classification.datasets.digits",
    "fashion_mnist": "natjax.train.tasks.classification.datasets.fashion_mnist",
    "emoji": "natjax.train.tasks.classification.datasets.emoji",
    "imagenet2012": "natjax.train.tasks.classification.datasets.imagenet",
    "image_folder": "natjax.train.tasks.classification.datasets.image_folder",
}


def dataset_names() -> list[str]:
    """Return the names that `get_spec` knows."""
    return list(_HOME)


def get_spec(data: DataConfig) -> DatasetSpec:
    """Return the data set that is configured.

    Raises:
      UserError: there is none of this name, and near names are suggested; or its classes are to be
        found in a folder and cannot be.
    """
    if data.name not in _HOME:
        known = ", ".join(_HOME)
        raise UserError(
            f"unknown data set {data.name!r}{did_you_mean(data.name, _HOME)}; data sets are {known}"
        )
    return importlib.import_module(_HOME[data.name]).get_spec(data)


def with_classes(data: DataConfig) -> DataConfig:
    """Return the configuration with the names of its classes, where a folder defines them.

    So they are saved with a run, which then knows them wherever it is taken.
    """
    if data.name != "image_folder" or data.classes:
        return data
    return dataclasses.replace(data, classes=get_spec(data).class_names)


def prepared_dir(config: DataConfig) -> Path:
    """Return where prepared sets are: as configured, else $NATJAX_DATA, else the user's cache."""
    if config.prepared_dir is not None:
        return config.prepared_dir.expanduser()
    return cache_folder()


def open_dataset(spec: DatasetSpec, config: DataConfig) -> Any:
    """Return what `open_split` opens: the TFDS builder of a prepared data set, or a folder.

    Small data sets are prepared on the way; of large ones the error says how.

    Preparing writes into a folder of its own that is renamed when whole, so an interrupted one is
    begun anew; two processes that start together prepare it once.

    Raises:
      UserError: the original files are missing or damaged.
    """
    console.quiet_libraries()
    root = prepared_dir(config)
    builder = spec.builder(root, config.dir)
    if builder.is_prepared():
        return builder
    root.mkdir(parents=True, exist_ok=True)
    with alone(root / f".{spec.name}.lock"):
        builder = spec.builder(root, config.dir)
        if not builder.is_prepared():
            _prepare(spec, builder, config.dir)
    return builder


def _prepare(spec: DatasetSpec, builder: Any, original: Path | None) -> None:
    spec.check_original(original)
    for leftover in Path(builder.data_dir).parent.glob("incomplete.*"):
        shutil.rmtree(leftover)
    with console.waiting(f"Preparing {spec.name} in {builder.data_dir} (once)"), _quiet():
        builder.download_and_prepare()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def open_split(builder: Any, split: str) -> Source:
    """Return a split with random access; images stay encoded, so that decoding is ours."""
    if hasattr(builder, "source"):
        return builder.source(split)
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        from natjax.train.data.tfrecords import open_tfrecords

        return open_tfrecords(builder, split, decoders)
    return builder.as_data_source(split=split, decoders=decoders)
