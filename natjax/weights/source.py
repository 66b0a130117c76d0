"""Bounded reading of an untrusted file."""

import os
import struct
from io import BufferedIOBase
from typing import Any

import numpy as np

from natjax.weights.errors import WeightsError


class Source:
    """Reads on from where a file stands, never asking for more than is there.

    A declared length is compared with the rest of the file before any memory is taken for it.

    Attributes:
      path: The file's name, for messages.
      left: Bytes that are still there.
    """

    def __init__(self, file: BufferedIOBase, path: os.PathLike[str], left: int):
        self.path = path
        self.left = left
        self._file = file

    def error(self, text: str) -> WeightsError:
        """Return an error about this file, to be raised."""
        return WeightsError(f"{self.path}: {text}")

    def cut_off(self, wanted: int) -> WeightsError:
        """Return the error for a file that ends too early."""
        return self.error(
            f"the file is cut off or damaged: {wanted} more bytes are expected where {self.left}"
            " are left; download it again"
        )

    def read(self, count: int) -> bytes:
        """Return exactly the next `count` bytes."""
        if not 0 <= count <= self.left:
            raise self.cut_off(count)
        data = self._file.read(count)
        if len(data) < count:
            raise self.cut_off(count)
        self.left -= count
        return data

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Return the next numbers, laid out as `struct` says."""
        return struct.unpack(layout, self.read(struct.calcsize(layout)))

    def line(self, longest: int) -> bytes:
        """Return the next line of at most `longest` bytes, without its end."""
        data = self._file.readline(min(longest, self.left))
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise self.error(f"a name must be at most {longest} bytes long and end with its line")
        return data[:-1]

    def fill(self, buffer: np.ndarray) -> None:
        """Read into all of a uint8 array."""
        if buffer.size > self.left:
            raise self.cut_off(buffer.size)
        view, done = memoryview(buffer), 0
        while done < buffer.size:
            count = self._file.readinto(view[done:])
            if not count:
                raise self.cut_off(buffer.size - done)
            done += count
        self.left -= done
