"""Reader of PyTorch's files: an archive or the older format, the content, and its storages."""

import sys
from typing import Any

import numpy as np

from natjax.weights.torchfile.archive import Archive, Entry
from natjax.weights.torchfile.machine import read_pickle
from natjax.weights.torchfile.tensors import STORAGE_DTYPES, Storages
from natjax.weights.untrusted import Source, show

# What the format without zip begins with, and its one version.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read_torch(source: Source) -> Any:
    """Read a file written by `torch.save`.

    Nothing in the file is executed: its pickle is read by a machine that knows tensors, dicts,
    lists, tuples, strings, numbers, True, False and None. Whatever else the file names, such as the
    ``argparse.Namespace`` of a training checkpoint, is not built: a `Skipped` with the name stands
    there. Tensors that share values in the file share them here, and so cannot be written to.

    Args:
      source: The file, at its beginning.

    Returns:
      What was saved. Tensors and parameters are NumPy arrays, bfloat16 and float8 by `ml_dtypes`;
      an OrderedDict is a dict.

    Raises:
      WeightsError: the file is no such file, is damaged, or asks for more than its share.
    """
    zipped = source.at(0, source.size).read(2) == b"PK"
    return _read_zip(source) if zipped else _read_legacy(source.at(0, source.size))


def _read_zip(source: Source) -> Any:
    """An archive: ``NAME/data.pkl``, ``NAME/byteorder``, and one ``NAME/data/KEY`` a storage."""
    archive = Archive(source)
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
        return _swapped(data, kind, source) if swap else data

    pickled = source.of(archive.read(entry))
    storages = Storages(source, fetch)
    content = read_pickle(pickled, storages)
    if pickled.left:
        raise source.error(f"data.pkl must end with its pickle, got {pickled.left} more bytes")
    storages.check_truths()
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
    source.charge(data.size)
    return data.view(f"u{width}").byteswap().view(np.uint8)


def _read_legacy(source: Source) -> Any:
    """The format without zip: magic number, version, system, content, storage keys (five pickles),
    then for each key the number of elements and the values, little-endian.
    """
    buffers = _Buffers(source)
    storages = Storages(source, buffers.fetch)
    magic, version, _ = (read_pickle(source, storages) for _ in range(3))
    if [type(magic), type(version)] != [int, int] or (magic, version) != (_MAGIC, _VERSION):
        raise source.error(
            f"a file of torch.save must be of version {_VERSION}, got {show(version)}"
        )
    content = read_pickle(source, storages)
    buffers.fill(read_pickle(source, storages))
    if source.left:
        raise source.error(f"the file must end after its storages, got {source.left} more bytes")
    storages.check_truths()
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
        self._made[key] = self._source.empty(size), kind
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
