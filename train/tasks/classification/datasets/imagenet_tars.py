"""What the official ImageNet archives hold, and where: read from their headers alone.

``ILSVRC2012_img_train.tar`` is a tar of uncompressed tars, a synset each, so every photo of all
three archives is a range of bytes of one file. Nothing is ever extracted by name.
"""

import dataclasses
import functools
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from natjax.train.data import file_cache
from natjax.train.errors import UserError

_Found = tuple[bytes, int, int, int]  # name, offset, size, label

_BLOCK = 512
_LINKS_AND_SUCH = "links, devices and extended headers are refused"
_ANSWER = "get the official archive again"


@dataclasses.dataclass(frozen=True)
class Archive:
    """One of the official archives.

    Attributes:
      split: Split of the data set that it becomes.
      file: Its name.
      count: Photos in the official one.
    """

    split: str
    file: str
    count: int


ARCHIVES = (
    Archive("train", "ILSVRC2012_img_train.tar", 1_281_167),
    Archive("validation", "ILSVRC2012_img_val.tar", 50_000),
    Archive("test", "ILSVRC2012_img_test.tar", 100_000),
)


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos of an archive, in its order.

    Attributes:
      names: File names, ASCII.
      offsets: First byte of each in the archive.
      sizes: Bytes of each.
      labels: Classes; -1 in the test split.
    """

    names: np.ndarray
    offsets: Int64[np.ndarray, " N"]
    sizes: Int64[np.ndarray, " N"]
    labels: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.names)


@functools.cache
def synsets() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes, by label."""
    return tuple(_tfds_lines("labels.txt"))


@functools.cache
def _validation_synsets() -> tuple[str, ...]:
    return tuple(_tfds_lines("validation_labels.txt"))


def _tfds_lines(name: str) -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


_KEPT = [field.name for field in dataclasses.fields(Photos)]


def index_archive(archive: Archive, path: Path, cache: Path | None = None) -> Photos:
    """Find every photo of an archive.

    Args:
      archive: Which one it is.
      path: Where it is.
      cache: File to keep what was found in; it counts while the archive's size and time of change
        are the same.

    Raises:
      UserError: the archive is damaged or cut short, or holds what the official one does not.
    """
    stamp = file_cache.stamp([path])
    known = None if cache is None else file_cache.load(cache, stamp, _KEPT)
    if known is not None:
        return Photos(**known)
    with path.open("rb") as file:
        descriptor = file.fileno()
        tar = _Tar(path, descriptor, 0, os.fstat(descriptor).st_size)
        photos = _photos(path, list(_WALKS[archive.split](tar)))
    if cache is not None:
        file_cache.save(cache, stamp, {name: getattr(photos, name) for name in _KEPT})
    return photos


def _photos(path: Path, found: list[_Found]) -> Photos:
    if not found:
        raise UserError(f"{path} must hold photos, got none; {_ANSWER}")
    names, offsets, sizes, labels = zip(*found, strict=True)
    numbers = (np.array(x, np.int64) for x in (offsets, sizes, labels))
    photos = Photos(np.array(names, np.bytes_), *numbers)
    _check_names_differ(path, photos)
    return photos


def _check_names_differ(path: Path, photos: Photos) -> None:
    unique, counts = np.unique(photos.names, return_counts=True)
    if len(unique) < len(photos):
        twice = unique[counts > 1][0].decode()
        raise UserError(f"{path} must hold every photo once, got {twice} more often; {_ANSWER}")


@dataclasses.dataclass(frozen=True)
class _Tar:
    """A tar, or a tar inside one: bytes from `start` to `end` of an open file."""

    path: Path
    descriptor: int
    start: int
    end: int
    inside: str = ""

    def members(self) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """Every file with the offset of its bytes; folders are passed over.

        Python's own reader takes a damaged header for the end of the archive; this one does not.
        """
        at = self.start
        while True:
            if at + _BLOCK > self.end:
                raise self._error(f"ends at byte {self.end} without its mark of the end: cut short")
            header = os.pread(self.descriptor, _BLOCK, at)
            if not any(header):
                return
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise self._error(f"has a damaged header at byte {at} ({error})") from error
            at += _BLOCK
            if member.isdir():
                continue
            name = ascii(member.name)
            if not member.isreg() or member.type == tarfile.CONTTYPE:
                raise self._error(f"must hold plain files, got {name}: {_LINKS_AND_SUCH}")
            if member.size < 0 or member.size > self.end - at:
                raise self._error(
                    f"holds {name} of {member.size} bytes at byte {at}, but ends at {self.end}"
                )
            yield member, at
            at += -(-member.size // _BLOCK) * _BLOCK

    def _error(self, text: str) -> UserError:
        return UserError(f"{self.path}{self.inside} {text}; {_ANSWER}")

    def refuse(self, name: str, rule: str) -> UserError:
        """The error for a member whose name breaks a rule."""
        return self._error(f"must hold {rule}, got {name!a}")


def _walk_train(tar: _Tar) -> Iterator[_Found]:
    labels = {synset: label for label, synset in enumerate(synsets())}
    seen: set[str] = set()
    for outer, start in tar.members():
        synset, dot, ending = outer.name.partition(".")
        if synset not in labels or (dot, ending) != (".", "tar"):
            raise tar.refuse(outer.name, "a SYNSET.tar for each of the 1000 synsets")
        if synset in seen:
            raise tar.refuse(outer.name, "every synset once")
        seen.add(synset)
        inner = dataclasses.replace(
            tar, start=start, end=start + outer.size, inside=f", {outer.name},"
        )
        fits = re.compile(rf"{synset}_[0-9]{{1,9}}\.JPEG").fullmatch
        for member, offset in inner.members():
            if not fits(member.name):
                raise inner.refuse(member.name, f"files named {synset}_NUMBER.JPEG")
            yield member.name.encode(), offset, member.size, labels[synset]


def _walk_validation(tar: _Tar) -> Iterator[_Found]:
    # TFDS counts the sorted names; for the official archive the number in the name says the same,
    # and for a part of it the number alone is right.
    labels = {synset: label for label, synset in enumerate(synsets())}
    answers = _validation_synsets()
    fits = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG").fullmatch
    for member, offset in tar.members():
        match = fits(member.name)
        if match is None or not 1 <= int(match[1]) <= len(answers):
            raise tar.refuse(member.name, f"ILSVRC2012_val_00000001.JPEG to {len(answers):08}")
        yield member.name.encode(), offset, member.size, labels[answers[int(match[1]) - 1]]


def _walk_test(tar: _Tar) -> Iterator[_Found]:
    # The edition of October 2019 has them in a folder, which is part of their names in TFDS too.
    fits = re.compile(r"(?:\./)?((?:test/)?ILSVRC2012_test_[0-9]{8}\.JPEG)").fullmatch
    for member, offset in tar.members():
        match = fits(member.name)
        if match is None:
            raise tar.refuse(member.name, "files named ILSVRC2012_test_NUMBER.JPEG")
        yield match[1].encode(), offset, member.size, -1


_WALKS: dict[str, Callable[[_Tar], Iterator[_Found]]] = {
    "train": _walk_train,
    "validation": _walk_validation,
    "test": _walk_test,
}
