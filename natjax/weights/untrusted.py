"""Untrusted files and servers: what reading them may cost, and how their text is shown.

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

# Reading a file takes at most so many bytes, and so many times its own size, of memory.
BASE = 2**25
FACTOR = 4
# What is charged beside the bytes themselves, as Python's objects take it (64 bits).
READ = 16
VALUE = 64
ENTRY = 16
_LONGEST_MESSAGE = 8000


class WeightsError(ValueError):
    """A file or download that cannot be used; the message names it, the rule and the value.

    Messages quote files and servers of strangers. Whatever reaches one, it is harmless to a
    terminal: control characters are escaped, and its length is bounded.

    Args:
      message: The text; line breaks are kept.
    """

    def __init__(self, message: str):
        shown = message[:_LONGEST_MESSAGE]
        if not shown.replace("\n", "").isprintable():
            shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in shown)
        super().__init__(shown if len(message) <= _LONGEST_MESSAGE else f"{shown}...")


def show(value: Any, *, bare: bool = False, longest: int = 80) -> str:
    """Return a short form of a value from an untrusted file or server, for a message.

    Containers are named by type only: printing a small file's nested lists can take for ever.
    `repr` escapes what would control a terminal.

    Args:
      value: Anything.
      bare: Leave out the quotes of text that can be printed as it is, such as a key in a list.
      longest: Characters of text at most.
    """
    if isinstance(value, str | bytes):
        text = value[: longest + 1]  # before it is escaped, which takes time for what is long
        plain = bare and isinstance(text, str) and text.isprintable() and text
        text = text if plain else repr(text)
        return text if len(text) <= longest else f"{text[: longest - 3]}..."
    if isinstance(value, int | float | None):
        return _number(value)
    if isinstance(value, tuple) and all(type(entry) is int for entry in value[:9]):
        inner = ", ".join(map(_number, value[:8]))
        return f"({inner}{', ...' if len(value) > 8 else ''})"
    return f"a {type(value).__name__}"


def _number(value: int | float | None) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print the longest
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def show_some(names: list[str], most: int = 20) -> list[str]:
    """Return the first names of a list in their short form, and how many more there are.

    Args:
      names: From an untrusted file.
      most: How many to show.
    """
    shown = [show(name, bare=True) for name in names[:most]]
    return [*shown, f"... and {len(names) - most} more"] if len(names) > most else shown


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
