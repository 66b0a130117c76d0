"""Files of weights: read, their format told by the content, and written."""

import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from natjax.weights.torchfile.reader import read_torch
from natjax.weights.torchfile.writer import write_torch
from natjax.weights.untrusted import Source, WeightsError, show

Format = Literal["torch", "safetensors", "arrays"]

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

_HEAD = 512
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # pickled
# First bytes, after white space, of what people get in the place of weights.
_OTHER_FORMATS = {
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
_LONGEST_HEADER = 2**23
# Memory that json takes for a byte of its text, at most: "[]," is a list, `"abcd":1,` an entry.
_PARSED = 40
_MOST_AXES = 32
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}


@dataclass(frozen=True)
class SourceFile:
    """A file of weights that was read.

    Attributes:
      path: Where it is; what they are called for arrays that come from no file.
      format: ``"torch"``, ``"safetensors"``, or ``"arrays"``.
      content: What it holds: for safetensors a dict of arrays; for torch whatever was saved.
      metadata: Texts that a safetensors file carries; empty for torch.
    """

    path: Path
    format: Format
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)


def read_file(path: str | os.PathLike[str]) -> SourceFile:
    """Read a file of weights, once, within its budget (`natjax.weights.untrusted`).

    Args:
      path: The file.

    Raises:
      WeightsError: the file is no such file, is damaged, or asks for more than its share.
    """
    try:
        if os.path.isdir(path):
            raise WeightsError(f"{path}: a file of weights is expected, got a folder")
        with _open(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise WeightsError(f"{path}: a file of weights must be a regular file")
            source = Source(file, Path(path), status.st_size)
            head = source.at(0, source.size).read(min(_HEAD, source.size))
            if _recognise(head, path) == "torch":
                return SourceFile(Path(path), "torch", read_torch(source))
            arrays, metadata = _read_safetensors(source.at(0, source.size))
            return SourceFile(Path(path), "safetensors", arrays, metadata)
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
    for start, meaning in _OTHER_FORMATS.items():
        if text.startswith(start):
            raise WeightsError(f"{path}: the file must hold weights, got {meaning}")
    raise WeightsError(f"{path}: the file must be of torch.save or safetensors, got {_other(head)}")


def _other(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar archive (torch before 0.1.10 wrote such; save it again with a newer one)"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle that torch.save has not written; those are not read, as they can run code"
    return f"a file that begins with {show(head[:16])}"


# Safetensors: the length of a header, the header in JSON, and the bytes of the tensors, one after
# the other. The library maps the file, which lets whoever can write to it kill the process, or
# copies it twice, and takes 30 times the header; so it only writes, and reading is done here.


def _read_safetensors(source: Source) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    header = _read_header(source)
    metadata = header.pop("__metadata__", None) or {}
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise _damaged(source, "metadata must be texts by name")
    arrays, place = {}, 0
    for name, (dtype, shape, start, end) in sorted(_entries(header, source), key=_by_place):
        if start != place:
            raise _damaged(source, f"tensor {show(name)} must begin at byte {place}, got {start}")
        arrays[name] = source.array(end - start).view(dtype).reshape(shape)
        if dtype == np.bool_ and np.any(arrays[name].view(np.uint8) > 1):
            raise _damaged(source, f"truth values of tensor {show(name)} must be 0 or 1")
        place = end
    return {name: arrays[name] for name in header}, metadata


_Place = tuple[np.dtype, tuple[int, ...], int, int]


def _by_place(entry: tuple[str, _Place]) -> tuple[int, int]:
    return entry[1][2:]


def _read_header(source: Source) -> dict[str, Any]:
    """Read the header, and compare the file's size with it: that tells cut-off from wrong files."""
    size = source.size
    length = int.from_bytes(source.read(min(8, size)), "little")
    if length > _LONGEST_HEADER:
        raise source.error(
            f"a safetensors header must have at most {_LONGEST_HEADER} bytes, got {length}"
        )
    if 8 + length > size:
        raise source.error("the file is cut off within its header; download it again")
    source.charge(_PARSED * length)
    try:
        header = json.loads(source.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if not all(type(end) is int for end in ends):
            raise ValueError("offsets must be integers")
        end = 8 + length + max(ends, default=0)
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise source.error("the safetensors header is damaged; download it again") from None
    if end != size:
        raise source.error(
            f"the file must have {show(end)} bytes by its header, got {size}; it is cut off or"
            " damaged, download it again"
        )
    return header


def _entries(header: dict[str, Any], source: Source) -> Iterator[tuple[str, _Place]]:
    """Name, dtype, shape, first byte and last byte + 1 of each tensor, checked one by one."""
    for name, entry in header.items():
        kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        if not lists or not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
            raise _damaged(source, f"tensor {show(name)} must have a shape and two offsets")
        if not isinstance(kind, str) or kind not in _DTYPES:
            is_narrow = isinstance(kind, str) and kind.startswith(("F8_", "F6_", "F4"))
            what = (
                f"tensor {show(name)} must be of a dtype among {', '.join(sorted(_DTYPES))},"
                f" got {show(kind, bare=True)}"
            )
            raise source.error(what) if is_narrow else _damaged(source, what)
        dtype, (start, end) = np.dtype(_DTYPES[kind]), offsets
        count = math.prod(shape) if len(shape) <= _MOST_AXES else -1
        vast = math.prod(max(n, 1) for n in shape[:_MOST_AXES]) > 2**60  # beyond NumPy, if empty
        if vast or end - start != count * dtype.itemsize:
            raise _damaged(
                source, f"tensor {show(name)} must have as many bytes as its shape and dtype say"
            )
        yield name, (dtype, tuple(shape), start, end)


def _damaged(source: Source, what: str) -> WeightsError:
    return source.error(f"the file is not as safetensors files must be ({what}); download it again")


def check_target(path: str | os.PathLike[str]) -> Path:
    """Check what can be wrong with a file to be written, before anything is read or computed.

    Args:
      path: The file.

    Raises:
      WeightsError: an unknown ending, or no such folder.
    """
    target = Path(path).expanduser()
    if target.suffix not in _SUFFIXES:
        raise WeightsError(f"the file must end in one of {', '.join(_SUFFIXES)}; got {target.name}")
    if not target.parent.is_dir():
        raise WeightsError(f"there is no folder {target.parent}")
    return target


def write_file(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file of weights, beside the one of that name and then in its place.

    Args:
      path: The file, checked by `check_target`; its ending says the format.
      arrays: By key.
      metadata: Texts, which PyTorch's format has no place for.

    Raises:
      WeightsError: The format has no such dtype.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".natjax-") as folder:
        partial = Path(folder) / path.name
        if path.suffix in TORCH_SUFFIXES:
            write_torch(partial, arrays)
        else:
            from safetensors.numpy import save_file

            ordered = {key: np.asarray(array, order="C") for key, array in arrays.items()}
            save_file(ordered, partial, metadata)
        os.replace(partial, path)
