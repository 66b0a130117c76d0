"""Reader of PyTorch's ``.pth`` files, zipped or not, without PyTorch and without executing them."""

import io
import os
import sys
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from natjax.weights.errors import WeightsError, show
from natjax.weights.formats import open_weights
from natjax.weights.source import Source
from natjax.weights.torch_pickle import read_pickle
from natjax.weights.torch_tensors import STORAGE_DTYPES, Storages
from natjax.weights.torch_zip import Archive, Entry

# What the format without zip begins with, and its one version.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LARGEST_PICKLE = 2**27


def read_torch(path: str | os.PathLike[str], *, lenient: bool = False) -> Any:
    """Read a file written by `torch.save`.

    Nothing in the file is executed: its pickle is read by a machine that knows tensors, dicts,
    lists, tuples, strings, numbers, True, False and None. Sizes are checked against the file before
    memory is taken, so reading needs about the memory of the file. Tensors that share values in the
    file share them here, and so cannot be written to.

    Args:
      path: The file.
      lenient: Leave out everything else, such as the ``argparse.Namespace`` of a training
        checkpoint: a `Skipped` that carries its name stands there instead.

    Returns:
      What was saved. Tensors and parameters are NumPy arrays, bfloat16 and float8 by `ml_dtypes`;
      an OrderedDict is a dict.

    Raises:
      WeightsError: the file is no such file, is damaged, or holds something else.
    """
    with open_weights(path) as (file, size, kind):
        if kind != "torch":
            raise WeightsError(f"{path}: the file must be of torch.save, got {kind}")
        return read_open(file, Path(path), size, lenient=lenient)


def read_open(file: BufferedIOBase, path: Path, size: int, *, lenient: bool) -> Any:
    """As `read_torch`, from an open file of known size.

    Args:
      file: The file, at its beginning.
      path: Its name.
      size: Its size in bytes.
      lenient: As for `read_torch`.
    """
    zipped = file.read(2) == b"PK"
    file.seek(0)
    source = Source(file, path, size)
    return (_read_zip if zipped else _read_legacy)(file, source, lenient)


def _read_zip(file: BufferedIOBase, source: Source, lenient: bool) -> Any:
    """An archive: ``NAME/data.pkl``, ``NAME/byteorder``, and one ``NAME/data/KEY`` a storage."""
    archive = Archive(file, source)
    entry = _main_entry(archive, source)
    folder = entry.name.removesuffix("data.pkl")
    swap = _byte_order(archive, folder, source) != sys.byteorder

    def fetch(key: str, size: int, kind: str) -> np.ndarray:
        stored = archive.entries.get(f"{folder}data/{key}")
        if stored is None:
            raise source.error(f"storage {show(key)} must be in the archive; the file is damaged")
        if stored.size != size:
            raise source.error(
                f"storage {show(key)} must have {size} bytes as declared, got {stored.size}"
            )
        data = archive.read(stored)
        _check_bools(data, kind, source)
        return _swapped(data, kind, source) if swap else data

    if entry.size > _LARGEST_PICKLE:
        raise source.error(f"data.pkl must have at most {_LARGEST_PICKLE} bytes, got {entry.size}")
    pickled = Source(io.BytesIO(archive.read(entry).tobytes()), source.path, entry.size)
    content = read_pickle(pickled, Storages(fetch, source.error), lenient=lenient)
    if pickled.left:
        raise source.error(f"data.pkl must end with its pickle, got {pickled.left} more bytes")
    return content


def _main_entry(archive: Archive, source: Source) -> Entry:
    found = [name for name in archive.entries if name.split("/")[1:] == ["data.pkl"]]
    if any(name.split("/")[1:] == ["constants.pkl"] for name in archive.entries):
        raise source.error("the file must be of torch.save, got TorchScript; save its state_dict()")
    if len(found) != 1:
        names = ", ".join(map(show, list(archive.entries)[:3])) or "an empty one"
        raise source.error(f"the archive must have one FOLDER/data.pkl, got {names}")
    return archive.entries[found[0]]


def _byte_order(archive: Archive, folder: str, source: Source) -> str:
    """Files from before PyTorch 2.1 do not say; all of them are little-endian in practice."""
    entry = archive.entries.get(f"{folder}byteorder")
    if entry is None:
        return "little"
    order = archive.read(entry).tobytes() if entry.size < 16 else b""
    if order not in (b"little", b"big"):
        raise source.error(f"byteorder must be little or big, got {show(order)}")
    return order.decode()


def _swapped(data: np.ndarray, kind: str, source: Source) -> np.ndarray:
    """Bring values into this machine's byte order."""
    if kind.endswith(".UntypedStorage"):
        raise source.error(f"values of a {kind} must be in {sys.byteorder}-endian order")
    dtype = STORAGE_DTYPES[kind]
    # Halves of a complex number are values of their own.
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    return data.view(f"u{width}").byteswap().view(np.uint8)


def _read_legacy(file: BufferedIOBase, source: Source, lenient: bool) -> Any:
    """The format without zip: magic number, version, system, content, storage keys (five pickles),
    then for each key the number of elements and the values, little-endian.
    """
    buffers = _Buffers(source)
    storages = Storages(buffers.fetch, source.error)
    magic, version, _ = (read_pickle(source, storages, lenient=False) for _ in range(3))
    if [type(magic), type(version)] != [int, int] or (magic, version) != (_MAGIC, _VERSION):
        raise source.error(
            f"a file of torch.save must be of version {_VERSION}, got {show(version)}"
        )
    content = read_pickle(source, storages, lenient=lenient)
    buffers.fill(read_pickle(source, storages, lenient=False))
    if source.left:
        raise source.error(f"the file must end after its storages, got {source.left} more bytes")
    return content


class _Buffers:
    """Storages of a file in which they come last: made when first named, filled at the end."""

    def __init__(self, source: Source):
        self._source = source
        self._made: dict[str, tuple[np.ndarray, str]] = {}
        self._left = source.left

    def fetch(self, key: str, size: int, kind: str) -> np.ndarray:
        """Return memory for a storage, within what the file has in all."""
        if size > self._left:
            raise self._source.cut_off(size)
        self._left -= size
        self._made[key] = np.empty(size, np.uint8), kind
        return self._made[key][0]

    def fill(self, keys: Any) -> None:
        """Read the values, in the order of the file's list of keys."""
        good = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not good or sorted(keys) != sorted(self._made):
            raise self._source.error(
                "the list of storages must name those that tensors use, each once; it is damaged"
            )
        for key in keys:
            data, kind = self._made[key]
            (count,) = self._source.unpack("<q")
            if count * STORAGE_DTYPES[kind].itemsize != data.size:
                raise self._source.error(
                    f"storage {show(key)} must have {data.size} bytes as declared, got {count}"
                    f" elements of {STORAGE_DTYPES[kind]}"
                )
            self._source.fill(data)
            _check_bools(data, kind, self._source)


def _check_bools(data: np.ndarray, kind: str, source: Source) -> None:
    """NumPy's bool is undefined for other bytes."""
    if STORAGE_DTYPES[kind] == np.bool_ and np.any(data > 1):
        raise source.error("values of a torch.BoolStorage must be 0 or 1; the file is damaged")
