"""Random access to TFRecord files as TFDS has prepared them, without TensorFlow.

A TFRecord file is a sequence of records: length (8 bytes, little endian), checksum of the length (4
bytes), data, checksum of the data (4 bytes). Where each begins is found out once, by reading the
lengths alone, and kept in the user's cache. The checksums are CRC-32C, rotated and shifted by a
constant; those of the lengths are checked.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from natjax.train import console
from natjax.train.data import file_cache
from natjax.train.errors import UserError
from natjax.train.files import cache_folder

_HEADER = np.dtype([("length", "<u8"), ("checksum", "<u4")])
_FOOTER = 4
_KEPT = ("offsets", "lengths")
_MANY = 100_000


@dataclasses.dataclass(frozen=True)
class TFRecords:
    """Records of a split, by index; picklable, so that worker processes can have it.

    Attributes:
      files: The files.
      file: File of each record.
      offsets: First byte of each record's data.
      lengths: Bytes of each record.
      features: TFDS features, which decode a record.
      decoders: As `tfds.core.DatasetBuilder.as_data_source` takes them.
    """

    files: tuple[str, ...]
    file: Int64[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " N"]
    lengths: Int64[np.ndarray, " N"]
    features: Any
    decoders: Any

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        path, length = self.files[self.file[index]], int(self.lengths[index])
        # Opened anew each time: there may be more files than a process may hold open.
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, int(self.offsets[index]))
        if len(data) != length:
            raise UserError(f"{path} is shorter than when it was indexed; start again")
        return self.features.deserialize_example_np(data, decoders=self.decoders)


def open_tfrecords(builder: Any, split: str, decoders: Any) -> TFRecords:
    """Open a split of a data set that TFDS has prepared as TFRecord files.

    Args:
      builder: The data set.
      split: Name of the split, or a slice of it such as ``"train[:10%]"``.
      decoders: Which features to leave encoded.

    Raises:
      UserError: a file is missing, damaged, or does not hold as many records as it should.
    """
    parts = builder.info.splits[split].file_instructions
    files = [Path(part.filename) for part in parts]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is missing; prepare {builder.info.name} again")
    index = _index(files, [part.examples_in_shard for part in parts])
    chosen = [slice(part.skip, part.skip + part.take) for part in parts]
    starts = [offsets[rows] for (offsets, _), rows in zip(index, chosen, strict=True)]
    return TFRecords(
        tuple(map(str, files)),
        np.repeat(np.arange(len(files)), [len(x) for x in starts]),
        np.concatenate(starts),
        np.concatenate([lengths[rows] for (_, lengths), rows in zip(index, chosen, strict=True)]),
        builder.info.features,
        decoders,
    )


_Places = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]


def _index(files: Sequence[Path], counts: Sequence[int]) -> list[_Places]:
    """Offsets and lengths of the records of each file."""
    stamp = file_cache.stamp(files)
    names = "\n".join(str(path.resolve()) for path in files)
    kept = cache_folder() / "tfrecords" / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.npz"
    ends = np.cumsum(counts)[:-1]
    known = _load(kept, stamp, sum(counts))
    if known is None:
        if sum(counts) > _MANY:
            console.say(f"Indexing {len(files)} TFRecord files in {files[0].parent} (once)")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(_find_records, files, counts))
        known = tuple(np.concatenate(part) for part in zip(*found, strict=True))
        _save(kept, stamp, *known)
    return list(zip(*(np.split(part, ends) for part in known), strict=True))


def _find_records(path: Path, count: int) -> _Places:
    size, at, offsets = path.stat().st_size, 0, []
    headers = bytearray()
    with path.open("rb", buffering=0) as file:
        while at < size:
            header = os.pread(file.fileno(), _HEADER.itemsize, at)
            length = int.from_bytes(header[:8], "little")
            if at + _HEADER.itemsize + length + _FOOTER > size:
                raise UserError(
                    f"{path} has a record of {length} bytes at byte {at}, but ends at {size}:"
                    " it is cut short or damaged; prepare it again"
                )
            headers += header
            offsets.append(at + _HEADER.itemsize)
            at += _HEADER.itemsize + length + _FOOTER
    fields = np.frombuffer(bytes(headers), _HEADER)
    wrong = np.flatnonzero(_masked(_crc32c(fields["length"])) != fields["checksum"])
    if len(wrong):
        at = offsets[wrong[0]] - _HEADER.itemsize
        raise UserError(
            f"{path} has a wrong checksum at byte {at}: it is damaged, or no TFRecord file;"
            " prepare it again"
        )
    if len(offsets) != count:
        raise UserError(f"{path} must have {count} records, got {len(offsets)}; prepare it again")
    return np.array(offsets, np.int64), fields["length"].astype(np.int64)


def _table() -> UInt32[np.ndarray, " 256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):  # the polynomial of Castagnoli, bits reversed
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


def _crc32c(lengths: np.ndarray) -> UInt32[np.ndarray, " N"]:
    """CRC-32C of the eight bytes of each number."""
    table, crc = _table(), np.full(len(lengths), 0xFFFFFFFF, np.uint32)
    for column in np.ascontiguousarray(lengths, "<u8").view(np.uint8).reshape(-1, 8).T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return ~crc


def _masked(crc: UInt32[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _load(path: Path, stamp: np.ndarray, count: int) -> _Places | None:
    found = file_cache.load(path, stamp, _KEPT)
    if found is None:
        return None
    fits = all(part.shape == (count,) and part.dtype == np.int64 for part in found.values())
    return (found["offsets"], found["lengths"]) if fits else None


def _save(path: Path, stamp: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_cache.save(path, stamp, {"offsets": offsets, "lengths": lengths})
    except OSError as error:  # found again the next time
        console.warn(f"the index of TFRecord files is not kept: {error}")
