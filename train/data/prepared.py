"""Folders of data sets that TFDS has prepared, and the lock of those that are being prepared."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.errors import UserError

_INFO = "dataset_info.json"


def find_version(folder: Path, name: str) -> Path | None:
    """Return the folder of the newest version of a prepared data set, or None.

    Args:
      folder: It holds the data set, the versions, or what one version is made of.
      name: The data set.
    """
    places = (folder, *folder.glob("*.*.*"), *(folder / name).glob("*.*.*"))
    found = [place for place in places if (place / _INFO).is_file()]
    return max(
        found, key=lambda place: [part.zfill(9) for part in place.name.split(".")], default=None
    )


def open_version(folder: Path, features: tuple[str, ...] = ("image", "label")) -> Any:
    """Return the TFDS builder of a prepared data set.

    Args:
      folder: A version, as `find_version` finds it.
      features: What its records must have.

    Raises:
      UserError: its description is damaged, or a feature is missing.
    """
    import tensorflow_datasets as tfds

    try:
        described = json.loads((folder / "features.json").read_text())
        _check_foreign(folder, described)
        builder = tfds.builder_from_directory(folder)
        names = set(builder.info.features)
    except UserError:
        raise
    except Exception as error:  # TFDS raises nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder} is not as TFDS prepares data sets: {reason}") from error
    if not names.issuperset(features):
        have = ", ".join(sorted(names))
        raise UserError(f"{folder} must have {' and '.join(features)}, got {have}")
    return builder


def _check_foreign(folder: Path, described: Any) -> None:
    """Refuse features of other packages, which TFDS would import by the name in the file."""
    if isinstance(described, dict):
        name = described.get("pythonClassName")
        if name is not None and not str(name).startswith("tensorflow_datasets.core.features."):
            raise UserError(f"{folder} must have features of TFDS itself, got {name!a}")
        for part in described.values():
            _check_foreign(folder, part)


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold a lock; whoever comes second is told, and waits."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.warn(f"waiting for another process, which holds {lock}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
