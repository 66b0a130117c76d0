"""Folders of data sets that TFDS has prepared, and the lock of those that are being prepared."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from natjax.train import console

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


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock; whoever comes second is told, and waits."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.warn(f"waiting for another process, which holds {lock}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
