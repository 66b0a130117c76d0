"""Arrays found out about files, kept on the disk for as long as the files stay the same."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64


def stamp(paths: Iterable[Path]) -> Int64[np.ndarray, "F 2"]:
    """Size and time of change of files, by which they are known to be the same."""
    stats = [path.stat() for path in paths]
    return np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64)


def save(path: Path, of: Int64[np.ndarray, "F 2"], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and the stamp of the files that they are about; whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, stamp=of, **arrays)
    os.replace(partial, path)


def load(
    path: Path, of: Int64[np.ndarray, "F 2"], names: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """Return what `save` has written, or None: not there, damaged, or about other files."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if not np.array_equal(kept["stamp"], of):
                return None
            return {name: kept[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
