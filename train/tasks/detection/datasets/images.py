"""Encoded images of a data set, in folders or in zips, and what their pixels must be like."""

import functools
import re
import typing
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ImageOps

from natjax.train.data.images import open_encoded, to_pixels, with_channels
from natjax.train.errors import UserError

Size = tuple[int, int]

# A member of a zip may promise to unfold to anything; no photo is nearly as large.
_LARGEST_FILE = 2**28


@typing.runtime_checkable
class ImageFiles(typing.Protocol):
    """Encoded images; picklable, as worker processes receive it."""

    def read(self, row: int, file: str) -> bytes:
        """Return an image.

        Args:
          row: Of the image in the annotations.
          file: Its name there.

        Raises:
          Exception: it cannot be read; storage raises nearly anything.
        """
        ...

    def name(self, row: int, file: str) -> str:
        """Return what to call an image in messages."""
        ...


class Folder(typing.NamedTuple):
    """Images in a folder.

    Attributes:
      path: The folder.
    """

    path: Path

    def read(self, row: int, file: str) -> bytes:
        """Return an image."""
        del row
        return (self.path / checked_name(file)).read_bytes()

    def name(self, row: int, file: str) -> str:
        """Return the path of an image."""
        del row
        return str(self.path / file)


class Zip(typing.NamedTuple):
    """Images in a zip, which is read in place.

    Attributes:
      path: The zip.
      inside: Folder in the zip, with a slash at its end, or nothing.
    """

    path: Path
    inside: str

    def read(self, row: int, file: str) -> bytes:
        """Return an image."""
        del row
        return read_member(self.path, self.inside + checked_name(file), _LARGEST_FILE)

    def name(self, row: int, file: str) -> str:
        """Return the paths of the zip and of an image in it."""
        del row
        return f"{self.path}/{self.inside}{file}"


def checked_name(file: str) -> str:
    """Return the name of a file that annotations name, if it leads nowhere else.

    Raises:
      OSError: it is absolute, or goes up.
    """
    parts = re.split(r"[/\\]", file)
    if not file or parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in file:
        raise OSError(f"file names must stay in the folder of the images, got {file!a}")
    return file


def read_member(path: Path, name: str, limit: int) -> bytes:
    """Return a member of a zip.

    Args:
      path: The zip.
      name: Of the member.
      limit: Bytes that it may unfold to.

    Raises:
      OSError: there is no such member, or it is larger.
      Exception: the zip is damaged; `zipfile` raises nearly anything.
    """
    archive = _opened(path)
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise FileNotFoundError(f"{path} has no {name}") from None
    if member.file_size > limit:
        raise OSError(f"{name} of {path} must be at most {limit} bytes, got {member.file_size}")
    return archive.read(member)


def members(path: Path) -> list[str]:
    """Return the names of what is in a zip.

    Raises:
      UserError: it is no zip, or is damaged.
    """
    try:
        return _opened(path).namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a zip: {error}") from error


@functools.lru_cache(maxsize=8)
def _opened(path: Path) -> zipfile.ZipFile:
    """A zip, opened once in each process: its table of contents takes long to read."""
    return zipfile.ZipFile(path)


def decode_upright(data: bytes, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image of a known size into RGB.

    Turned upright by its EXIF orientation, as mmdetection's reader turns it, unless only the pixels
    as they are stored have the size.

    Args:
      data: The file.
      size: Height and width that annotations count in.

    Raises:
      OSError: the image is of another size, or damaged.
      Exception: it is damaged; decoders raise nearly anything.
    """
    stored = open_encoded(data)
    if stored.size in (size, size[::-1]):  # before anything is decoded
        stored.load()
        for image in (ImageOps.exif_transpose(stored), stored):
            if (image.height, image.width) == size:
                return to_pixels(with_channels(image, 3))
    raise OSError(
        f"the annotations say {size[1]} x {size[0]} pixels, but the file has"
        f" {stored.width} x {stored.height}"
    )
