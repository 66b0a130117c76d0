"""The zip archives that `torch.save` writes since PyTorch 1.6.

They are a small part of the format: entries are stored, not compressed, one after the other, under
one folder. Everything else is refused, so that no entry is larger than its file and none shares
bytes with another. Layout: PKWARE, "APPNOTE.TXT - .ZIP File Format Specification".
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from natjax.weights.untrusted import VALUE, Source, show

_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 2**16 - 1
_LISTED = 768  # bytes that an entry of the directory takes as an object, with its name
_FULL16, _FULL32 = 2**16 - 1, 2**32 - 1
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive.

    Attributes:
      name: Its path there.
      header: Where its header begins.
      start: Where its bytes begin; 0 until the header is read.
      size: How many they are.
      crc: Their CRC-32.
    """

    name: str
    header: int
    start: int
    size: int
    crc: int


class Archive:
    """An archive with its directory read and checked.

    Args:
      source: The file, from its beginning.

    Attributes:
      entries: What it holds, by name.
    """

    def __init__(self, source: Source):
        self._source = source
        self.entries = self._read_directory()

    def read(self, entry: Entry) -> np.ndarray:
        """Return the bytes of an entry, a uint8 array, after comparing their checksum."""
        data = self._at(entry.start, entry.size).array(entry.size)
        if zlib.crc32(data) != entry.crc:
            raise self._source.error(
                f"the checksum of {show(entry.name)} is wrong, so the file is damaged; download it"
                " again"
            )
        return data

    def _at(self, start: int, size: int) -> Source:
        if start + size > self._source.size:
            raise self._source.error(
                f"the file must have {start + size} bytes by its own directory, got"
                f" {self._source.size}; it is cut off or damaged, download it again"
            )
        return self._source.at(start, size)

    def _read_directory(self) -> dict[str, Entry]:
        count, size, start = self._find_directory()
        directory = self._at(start, size)
        listed = [self._read_entry(directory) for _ in range(count)]
        entries: dict[str, Entry] = {}
        end = 0
        for entry in sorted(listed, key=lambda entry: entry.header):
            if entry.name in entries:
                raise self._source.error(
                    f"an entry must be there once, got {show(entry.name)} twice"
                )
            if entry.header < end:
                raise self._source.error(f"entry {show(entry.name)} must not overlap another")
            entries[entry.name] = self._locate(entry)
            end = entries[entry.name].start + entry.size
            if end > start:
                raise self._source.error(f"entry {show(entry.name)} must end before the directory")
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """Number of entries, size and place of the directory, from the record at the file's end."""
        length = min(self._source.size, _END.size + _LONGEST_COMMENT)
        tail = self._at(self._source.size - length, length).read(length)
        place = tail.rfind(b"PK\5\6")
        if place < 0 or place + _END.size > length:
            raise self._source.error(
                "the archive has no directory, so the file is cut off; download it again"
            )
        _, disk, first_disk, _, count, size, start, comment = _END.unpack_from(tail, place)
        if place + _END.size + comment != length or disk != first_disk:
            raise self._source.error("the archive's last record is damaged; download it again")
        place += self._source.size - length
        if _FULL16 in (disk, count) or _FULL32 in (size, start):
            count, size, start, place = self._find_directory64(place)
        if start + size > place:
            raise self._source.error("the archive's directory must end before its last record")
        return count, size, start

    def _find_directory64(self, end: int) -> tuple[int, int, int, int]:
        if end >= _END64_PLACE.size:
            record = self._at(end - _END64_PLACE.size, _END64_PLACE.size).read(_END64_PLACE.size)
            signature, _, place, _ = _END64_PLACE.unpack(record)
            if signature == b"PK\6\7" and place + _END64.size <= end:
                record = self._at(place, _END64.size).read(_END64.size)
                signature, *_, count, size, start = _END64.unpack(record)
                if signature == b"PK\6\6":
                    return count, size, start, place
        raise self._source.error("the archive's 64-bit record is damaged; download it again")

    def _read_entry(self, directory: Source) -> Entry:
        """Read one record of the directory."""
        self._source.charge(_LISTED)
        fields = _CENTRAL.unpack(directory.read(_CENTRAL.size))
        signature, _, _, flags, method, _, _, crc, stored, size, *rest = fields
        name_length, extra_length, comment_length, _, _, _, header = rest
        if signature != b"PK\1\2":
            raise self._source.error("the archive's directory is damaged; download the file again")
        name = self._name(directory.read(name_length))
        extra = directory.read(extra_length)
        directory.read(comment_length)
        if flags & _ENCRYPTED or method:
            raise self._source.error(
                f"entry {show(name)} must be stored as it is, as torch.save does; it is compressed"
                " or encrypted (unpack the archive and use the file inside)"
            )
        size, stored, header = self._wide(extra, size, stored, header)
        if size != stored:
            raise self._source.error(
                f"entry {show(name)} must have one size, got {stored} bytes for {size}"
            )
        return Entry(name, header, 0, size, crc)

    def _wide(self, extra: bytes, *values: int) -> list[int]:
        """Replace the values that fill 32 bits by those in the 64-bit extra field."""
        wide, place = b"", 0
        while place + 4 <= len(extra):
            self._source.charge(VALUE)
            kind, length = struct.unpack_from("<HH", extra, place)
            place += 4
            if kind == 1:
                wide = extra[place : place + length]
            place += length
        result = []
        for value in values:
            if value == _FULL32:
                if len(wide) < 8:
                    raise self._source.error("the archive's directory lacks a 64-bit size; damaged")
                value, wide = struct.unpack("<Q", wide[:8])[0], wide[8:]
            result.append(value)
        return result

    def _name(self, data: bytes) -> str:
        """Decode a name. Nothing is unpacked; odd names only tell that torch has not written it."""
        try:
            name = data.decode()
        except UnicodeDecodeError as error:
            raise self._source.error(
                "an entry's name must be UTF-8; the file is damaged"
            ) from error
        if "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise self._source.error(f"an entry must have a plain relative name, got {show(name)}")
        return name

    def _locate(self, entry: Entry) -> Entry:
        """Find an entry's bytes, behind a header that repeats its name."""
        header = self._at(entry.header, _LOCAL.size)
        signature, *_, name_length, extra_length = _LOCAL.unpack(header.read(_LOCAL.size))
        start = entry.header + _LOCAL.size
        name = self._at(start, name_length).read(name_length)
        if signature != b"PK\3\4" or name != entry.name.encode():
            raise self._source.error(
                f"entry {show(entry.name)} is not where the directory says; download the file again"
            )
        start += name_length + extra_length
        return Entry(entry.name, entry.header, start, entry.size, entry.crc)
