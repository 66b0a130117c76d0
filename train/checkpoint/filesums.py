"""Sizes and checksums of the files of a checkpoint, kept beside the checkpoints.

Checked before anything is read, so that a damaged file is named instead of sending a reader of
binary formats into it.
"""

import json
import zlib
from pathlib import Path

from natjax.train.files import write_whole

_CHUNK = 1 << 20


def write_sums(folder: Path, sums: Path) -> None:
    """Record every file under `folder` in the JSON file `sums`; replaced at once, never in part."""
    content = {str(path.relative_to(folder)): list(_sum(path)) for path in _files(folder)}
    sums.parent.mkdir(parents=True, exist_ok=True)
    write_whole(sums, json.dumps(content))


def find_damage(folder: Path, sums: Path) -> str | None:
    """Return what differs from the record, or None: nothing does, or there is no record.

    A run killed between writing a checkpoint and its record leaves it without one.
    """
    try:
        expected: dict[str, list[int]] = json.loads(sums.read_text())
    except (OSError, ValueError):
        return None
    for name, (size, crc) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sum(path) != (size, crc):
            return f"{name} is not as written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sum(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
