"""A file that is being downloaded: locked, resumable, and complete once it has its name."""

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from natjax.weights.errors import WeightsError

_POLL = 0.1  # seconds between two looks at a lock


@dataclass(frozen=True)
class Origin:
    """What a part of a file is a part of.

    Attributes:
      validator: Strong ETag or date of the server's file; empty where it gives none.
      total: Size of the whole file in bytes; None where the server does not tell.
    """

    validator: str
    total: int | None


class PartialFile:
    """The bytes that have come so far, under a name that ends in ``.part``.

    Attributes:
      size: How many they are.
      origin: What they are of; None where that is not known and they are of no use.
      finished: Whether the file has its final name.
      folder: Where it is.
    """

    def __init__(self, file: FileIO, path: Path):
        self._file = file
        self._path = path
        self._note = path.with_name(f"{path.name}.json")
        self.size = file.seek(0, os.SEEK_END)
        self.origin = self._read_note()
        self.finished = False
        self.folder = path.parent

    def begin(self, origin: Origin) -> None:
        """Drop what is there and note what is to come."""
        self.discard_bytes()
        self.origin = origin
        self._note.write_text(json.dumps(asdict(origin)))

    def discard_bytes(self) -> None:
        """Drop what is there, of use no more."""
        self._note.unlink(missing_ok=True)
        self._file.truncate(0)
        self._file.seek(0)
        self.size = 0
        self.origin = None

    def append(self, data: bytes) -> None:
        """Add bytes, and count those that were written even if the disk is then full."""
        left = memoryview(data)
        while left:
            count = self._file.write(left)
            self.size += count
            left = left[count:]

    def content(self) -> FileIO:
        """Return the file, at its beginning, to be read."""
        self._file.seek(0)
        return self._file

    def discard(self) -> None:
        """Remove the bytes."""
        self.origin = None
        self._note.unlink(missing_ok=True)
        with contextlib.suppress(PermissionError):  # open, on Windows
            self._path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the file its name, at once and for good."""
        os.fsync(self._file.fileno())
        if os.name == "nt":  # an open file cannot be renamed there
            self._file.close()
        self._note.unlink(missing_ok=True)
        os.replace(self._path, target)
        self.finished = True

    def _read_note(self) -> Origin | None:
        """A note that is missing or damaged means to begin again."""
        try:
            note = json.loads(self._note.read_text())
            origin = Origin(str(note["validator"]), note["total"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        good = origin.total is None or (type(origin.total) is int and origin.total >= self.size)
        return origin if good and self.size else None


@contextlib.contextmanager
def partial_file(target: Path, waiting: Callable[[], None]) -> Iterator[PartialFile]:
    """Open the partial file of a download, alone among all processes.

    Args:
      target: Name of the whole file; its folder is made. Another process may have finished it by
        the time this one's turn has come.
      waiting: Called once where another process is at it and has to be waited for.

    Yields:
      The partial file. What is worth resuming stays when the block is left.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = target.with_name(f"{target.name}.part")
        file = _open_locked(path, waiting)
        resumable = file is not None
        if file is None:  # no locks here: a file of one's own
            number, name = tempfile.mkstemp(".part", target.name, target.parent)
            path, file = Path(name), os.fdopen(number, "r+b", buffering=0)
        with file:
            part = PartialFile(file, path)
            try:
                yield part
            finally:
                if not part.finished and not (resumable and part.size and part.origin):
                    part.discard()
    except OSError as error:
        raise storage_error(target.parent, error) from error


def _open_locked(path: Path, waiting: Callable[[], None]) -> FileIO | None:
    """Open a file and lock it until it is closed; None where the system cannot lock."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    told = False
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            if not told:
                waiting()
            told = True
            time.sleep(_POLL)
        except OSError:  # some network file systems
            file.close()
            return None
        file.close()


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether a file still has its name: whoever held the lock before may have finished it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def storage_error(folder: Path, error: OSError) -> WeightsError:
    """Return the error for a folder that does not take a file.

    Args:
      folder: The folder.
      error: What the system says.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WeightsError(f"{folder}: the disk is full or a quota is reached; make room")
    return WeightsError(
        f"{folder}: the folder for downloads cannot be written ({error.strerror or error}); set"
        " NATJAX_CACHE to another, or download by hand and give the path of the file"
    )
