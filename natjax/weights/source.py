"""Bounded reading of an untrusted file.

Whoever made a file decides what reading it takes: a kilobyte can describe a structure of terabytes,
or one that takes hours to copy. So every file has a budget, in bytes, in proportion to its size.
All that is read, built or copied is charged to it, and nothing is ever given back: it bounds the
memory in use at any time, and the work, since what is not charged takes no longer than what is.
"""

import io
import os
import struct
from io import BufferedIOBase
from typing import Any

import numpy as np

from natjax.weights.errors import WeightsError

# Reading a file takes at most so many bytes, and so many times its own size, of memory.
BASE = 2**25
FACTOR = 4
# What is charged beside the bytes themselves, as Python's objects take it (64 bits).
READ = 16
VALUE = 64
ENTRY = 16


class _Budget:
    """What is left to one file."""

    def __init__(self, size: int):
        self.left = BASE + FACTOR * size


class Source:
    """Reads on from a place in a file, never asking for more than is there.

    A declared length is compared with the rest of the stretch before any memory is taken for it.

    Args:
      file: Open for reading.
      path: Its name, for messages.
      size: Its size in bytes.

    Attributes:
      path: The file's name, for messages.
      size: Of the stretch that is read, in bytes.
      left: Bytes of it that are still there.
    """

    def __init__(self, file: BufferedIOBase, path: os.PathLike[str], size: int):
        self.path = path
        self.size = self.left = size
        self._file = file
        self._budget = _Budget(size)

    def at(self, start: int, size: int) -> "Source":
        """Return a stretch of the same file, on the same budget.

        Args:
          start: Its first byte, counted from the beginning of the file.
          size: Its bytes; the caller has compared them with the file.
        """
        self.charge(VALUE)
        self._file.seek(start)
        return self._share(self._file, size)

    def of(self, data: np.ndarray) -> "Source":
        """Return bytes that were read as a stretch of their own, on the same budget."""
        self.charge(data.size)
        return self._share(io.BytesIO(data.tobytes()), data.size)

    def _share(self, file: BufferedIOBase, size: int) -> "Source":
        part = Source(file, self.path, size)
        part._budget = self._budget
        return part

    def error(self, text: str) -> WeightsError:
        """Return an error about this file, to be raised."""
        return WeightsError(f"{self.path}: {text}")

    def cut_off(self, wanted: int) -> WeightsError:
        """Return the error for a file that ends too early."""
        return self.error(
            f"the file is cut off or damaged: {wanted} more bytes are expected where {self.left}"
            " are left; download it again"
        )

    def charge(self, cost: int) -> None:
        """Take from the budget what is about to be built, copied or walked through.

        Args:
          cost: In bytes, at most what it takes.

        Raises:
          WeightsError: the file asks for more than its share.
        """
        self._budget.left -= cost
        if self._budget.left < 0:
            raise self.error(
                f"reading must cost at most {FACTOR} times the bytes of the file and"
                f" {BASE // 2**20} MiB, but the file asks for more; it is damaged or hostile"
            )

    def read(self, count: int) -> bytes:
        """Return exactly the next `count` bytes."""
        if not 0 <= count <= self.left:
            raise self.cut_off(count)
        self.charge(READ + count)
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
        self.charge(READ + len(data))
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise self.error(f"a name must be at most {longest} bytes long and end with its line")
        return data[:-1]

    def array(self, count: int) -> np.ndarray:
        """Return exactly the next `count` bytes as a new uint8 array."""
        if not 0 <= count <= self.left:
            raise self.cut_off(count)
        data = self.empty(count)
        self.fill(data)
        return data

    def empty(self, count: int) -> np.ndarray:
        """Return a new uint8 array, to be filled."""
        self.charge(VALUE + count)
        return np.empty(count, np.uint8)

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
