"""What kind of file something is, from its first bytes: names lie."""

import contextlib
import os
import stat
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Literal

from natjax.weights.errors import WeightsError, show

Format = Literal["torch", "safetensors"]

_HEAD = 512
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # pickled
# First bytes, after white space, of what people get in the place of weights.
_IMPOSTORS = {
    b"<!doctype html": "a web page; the download has failed, so fetch it again",
    b"<html": "a web page; the download has failed, so fetch it again",
    b"<?xml": "an XML document; the download has failed, so fetch it again",
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer; fetch the file itself with `git lfs pull`, or by its address"
    ),
    b"{": "a JSON document; give the weights that belong to it",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x89hdf\r\n": "an HDF5 file; save the weights as safetensors",
    b"\x93numpy": "a NumPy array; save the weights as safetensors",
}


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[tuple[BufferedIOBase, int, Format]]:
    """Open a file and recognise its format.

    Args:
      path: The file.

    Yields:
      The file at its beginning, its size in bytes, and its format.

    Raises:
      WeightsError: it cannot be read, or is neither; errors of the system inside the ``with`` block
        become this one too.
    """
    try:
        if os.path.isdir(path):
            raise WeightsError(f"{path}: a file of weights is expected, got a folder")
        with _open(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise WeightsError(f"{path}: a file of weights must be a regular file")
            kind = _recognise(file.read(_HEAD), path)
            file.seek(0)
            yield file, status.st_size, kind
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(f"{path}: the file cannot be read: {reason}") from error
    except MemoryError as error:
        raise WeightsError(f"{path}: there is not enough memory for the file") from error


def _open(path: str | os.PathLike[str]) -> BufferedIOBase:
    try:
        # A pipe would wait for its other end.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: there is no such file") from error
    except ValueError as error:  # such as a zero byte in the name
        raise WeightsError(f"{os.fspath(path)!r}: there cannot be such a file: {error}") from error


def _recognise(head: bytes, path: str | os.PathLike[str]) -> Format:
    if not head:
        raise WeightsError(f"{path}: the file is empty; download it again")
    if head.startswith(b"PK\3\4") or (head[:1] == b"\x80" and _LEGACY_MAGIC in head[:32]):
        return "torch"
    # Length of a JSON header, and its beginning.
    if head[8:9] == b"{" and head[:1] != b"{":
        return "safetensors"
    text = head.lstrip().lower()
    for start, meaning in _IMPOSTORS.items():
        if text.startswith(start):
            raise WeightsError(f"{path}: the file must hold weights, got {meaning}")
    raise WeightsError(f"{path}: the file must be of torch.save or safetensors, got {_other(head)}")


def _other(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar archive (torch before 0.1.10 wrote such; save it again with a newer one)"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle that torch.save has not written; those are not read, as they can run code"
    return f"a file that begins with {show(head[:16])}"
