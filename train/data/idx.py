"""Reader of IDX files, the format of MNIST and its successors, gzipped or not.

Layout: two zero bytes, a type byte (8 is uint8), the number of axes, each axis' length as a
big-endian uint32, then the values. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from natjax.train.errors import UserError

_UINT8 = 8
# A header may promise anything; nothing of this format is near a gibibyte.
_LARGEST = 2**30


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Read one file of unsigned bytes.

    Args:
      path: The file; gzip is recognised by its content.
      axes: How many axes the array must have: 3 for images, 1 for labels.

    Returns:
      uint8 array of the shape in the header.

    Raises:
      UserError: the file is not such an array, or is cut off, damaged or too long; it is named.
    """
    data = _content(path)
    expected = bytes((0, 0, _UINT8, axes))
    if data[:4] != expected:
        raise UserError(
            f"{path} must begin with {expected.hex(' ')} (IDX, uint8, {axes} axes),"
            f" got {data[:4].hex(' ') or 'nothing'}"
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise UserError(f"{path} must have a header of {start} bytes, got {len(data)}")
    shape = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise UserError(
            f"{path} must have {math.prod(shape)} bytes of data for shape {shape},"
            f" got {len(data) - start}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _LARGEST:
        raise UserError(f"{path} must hold at most {_LARGEST} bytes, got more")
    return data
