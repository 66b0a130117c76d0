"""Data sets: how they are prepared and opened, with TFDS or by what takes its place."""

import contextlib
import dataclasses
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.config.settings import DataConfig
from natjax.train.data.prepared import locked
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
    """How a data set is opened; tasks add what is in it.

    Attributes:
      name: As in `DataConfig.name`.
      train_split: TFDS split to learn from.
      test_split: TFDS split that is held out.
      builder: ``(prepared_dir, original_dir) -> TFDS builder``, writing ArrayRecord; or what takes
        its place, with ``is_prepared()`` and ``source(split)``.
      check_original: Called before preparing; raises `UserError` where files are missing.
    """

    name: str
    train_split: str
    test_split: str
    builder: Callable[[Path, Path | None], Any]
    check_original: Callable[[Path | None], None] = lambda _: None


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
    with locked(root / f".{spec.name}.lock"):
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


def open_split(builder: Any, split: str, encoded: tuple[str, ...] = ("image",)) -> Source:
    """Return a split with random access.

    Args:
      builder: Of a prepared data set.
      split: Its name.
      encoded: Images, which stay encoded, so that decoding is ours.
    """
    if hasattr(builder, "source"):
        return builder.source(split)
    import tensorflow_datasets as tfds

    decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        from natjax.train.data.tfrecords import open_tfrecords

        return open_tfrecords(builder, split, decoders)
    return builder.as_data_source(split=split, decoders=decoders)
