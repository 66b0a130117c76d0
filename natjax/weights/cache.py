"""Where downloads are kept: a name for each address, and files that come in parts.

The folder may be one that others can write to, so what has the name of a part or of its note is
opened only where it is a plain file: a link could lead to any file of the caller's.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from natjax.weights.untrusted import WeightsError

_POLL = 0.1  # seconds between two looks at a lock


def cache_folder() -> Path:
    """Return the folder where downloads are kept; it need not exist.

    It is ``$NATJAX_CACHE``, else ``$XDG_CACHE_HOME/natjax``, else ``~/.cache/natjax``.

    Raises:
      WeightsError: nothing is set and there is no home folder.
    """
    try:
        if own := os.environ.get("NATJAX_CACHE"):
            return Path(own).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification: a relative path is invalid and to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "natjax"
    except RuntimeError as error:
        raise WeightsError("NATJAX_CACHE must name a folder, as there is no home folder") from error


def cached_path(url: str, folder: Path) -> Path:
    """Return where the file of an address is kept: two addresses never share one.

    Args:
      url: The address.
      folder: The folder for downloads.
    """
    address = urllib.parse.urldefrag(url).url
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-32:] or "weights"
    return folder / f"{hashlib.sha256(address.encode()).hexdigest()}-{name}"


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
      folder: Where it is.
    """

    def __init__(self, file: FileIO, path: Path):
        self._file = file
        self._path = path
        self._note = path.with_name(f"{path.name}.json")
        self.size = file.seek(0, os.SEEK_END)
        self.origin = self._read_note() if self.size else None
        self.folder = path.parent

    def begin(self, origin: Origin) -> None:
        """Drop what is there and note what is to come."""
        self.discard_bytes()
        self.origin = origin
        with _open_own(self._note) as note:
            note.truncate(0)
            note.write(json.dumps(asdict(origin)).encode())

    def discard_bytes(self) -> None:
        """Drop what is there, of use no more."""
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

    def discard(self) -> None:
        """Remove the bytes."""
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

    def _read_note(self) -> Origin | None:
        """A note that is missing or damaged means to begin again."""
        try:
            with _open_own(self._note) as file:
                note = json.loads(file.read(10_000))
            origin = Origin(str(note["validator"]), note["total"])
        except (ValueError, LookupError, TypeError):
            return None
        good = origin.total is None or (type(origin.total) is int and origin.total >= self.size)
        return origin if good else None


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[PartialFile]:
    """Open the partial file of a download, alone among all processes.

    Args:
      target: Name of the whole file; its folder is made. Another process may have finished it by
        the time this one's turn has come.

    Yields:
      The partial file. What is worth resuming stays when the block is left.

    Raises:
      WeightsError: the folder cannot be written, or somebody has put a link in the file's place.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = target.with_name(f"{target.name}.part")
        file = _open_locked(path)
        resumable = file is not None
        if file is None:  # no locks here: a file of one's own
            number, name = tempfile.mkstemp(".part", target.name, target.parent)
            path, file = Path(name), os.fdopen(number, "r+b", buffering=0)
        with file:
            part = PartialFile(file, path)
            try:
                yield part
            finally:
                if path.exists() and not (resumable and part.size and part.origin):
                    part.discard()
    except OSError as error:
        raise _storage_error(target.parent, error) from error


def _open_own(path: Path) -> FileIO:
    """Open a file, made if need be, that is a plain one and nobody's link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _planted(path) from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        file.close()
        raise _planted(path)
    return file


def _planted(path: Path) -> WeightsError:
    return WeightsError(f"{path}: the file must be a plain one, not a link; remove it")


def _open_locked(path: Path) -> FileIO | None:
    """Open a file and lock it until it is closed; None where the system cannot lock."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    told = False
    while True:
        file = _open_own(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held the lock before may have given the file its final name.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            if not told:
                name = path.name.removesuffix(".part")
                sys.stderr.write(f"natjax: waiting for another process that downloads {name}\n")
            told = True
            time.sleep(_POLL)
        except FileNotFoundError:
            pass
        except OSError:  # some network file systems
            file.close()
            return None
        file.close()


def _storage_error(folder: Path, error: OSError) -> WeightsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WeightsError(f"{folder}: the disk is full or a quota is reached; make room")
    return WeightsError(
        f"{folder}: the folder for downloads cannot be written ({error.strerror or error}); set"
        " NATJAX_CACHE to another, or download by hand and give the path of the file"
    )
