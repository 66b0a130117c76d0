"""The one interface between a data set and everything else, and the list of data sets.

A data set is a `DatasetSpec`: how to build it with TFDS, how to decode one image, how to normalise,
and the names of its classes. The pipeline, the step, evaluation and prediction know nothing more.
What is random about training images is the run's: `natjax.train.config.AugmentConfig`.
"""

import contextlib
import dataclasses
import fcntl
import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.config import DataConfig
from natjax.train.errors import UserError, did_you_mean

Source = Sequence[dict[str, Any]]


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
      builder: ``(prepared_dir, original_dir) -> TFDS builder``, writing ArrayRecord.
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


# Module and name of each data set's spec; imported on use, since builders import TFDS.
_HOME = {
    "digits": "natjax.train.digits",
    "fashion_mnist": "natjax.train.fashion_mnist",
    "emoji": "natjax.train.emoji",
}


def dataset_names() -> list[str]:
    """Return the names that `get_spec` knows."""
    return list(_HOME)


def get_spec(name: str) -> DatasetSpec:
    """Return the data set called `name`.

    Raises:
      UserError: there is none; near names are suggested.
    """
    if name not in _HOME:
        known = ", ".join(_HOME)
        raise UserError(
            f"unknown data set {name!r}{did_you_mean(name, _HOME)}; data sets are {known}"
        )
    return importlib.import_module(_HOME[name]).SPEC


def prepared_dir(config: DataConfig) -> Path:
    """Return where prepared sets are: as configured, else $NATJAX_DATA, else the user's cache."""
    if config.prepared_dir is not None:
        return config.prepared_dir.expanduser()
    if os.environ.get("NATJAX_DATA"):
        return Path(os.environ["NATJAX_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "natjax" / "data"


def open_dataset(spec: DatasetSpec, config: DataConfig) -> Any:
    """Return the TFDS builder of a prepared data set, preparing it first where needed.

    Preparing writes into a folder of its own that is renamed when whole, so an interrupted one is
    begun anew; two processes that start together prepare it once.

    Raises:
      UserError: the original files are missing or damaged.
    """
    console.quiet_libraries()
    root = prepared_dir(config)
    root.mkdir(parents=True, exist_ok=True)
    builder = spec.builder(root, config.dir)
    if builder.is_prepared():
        return builder
    with _alone(root / f".{spec.name}.lock"):
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


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def open_split(builder: Any, split: str) -> Source:
    """Return a split with random access; images stay encoded, so that decoding is ours."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
