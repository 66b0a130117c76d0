"""PyTorch's zip format, written without PyTorch: a state dict of plain arrays.

The file is a zip archive with a pickle of the names and, for every array, an entry with its bytes.
The pickle is written opcode by opcode, as `torch.load` (also with ``weights_only=True``) and
`natjax.weights.formats` read it.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from natjax.weights.untrusted import WeightsError

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}
_FOLDER = "archive"


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict as ``torch.save`` would.

    Args:
      path: the file; replaced where it exists.
      arrays: by key.

    Raises:
      WeightsError: PyTorch has no such dtype.
    """
    for key, array in arrays.items():
        if array.dtype.name not in _STORAGES:
            raise WeightsError(
                f"{key!r} must be of {', '.join(_STORAGES)} for PyTorch; got {array.dtype.name}"
            )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, strict_timestamps=True) as file:
        _write(file, "data.pkl", _state_dict(arrays))
        _write(file, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _write(file, f"data/{i}", little.tobytes())
        _write(file, "version", b"3\n")


def _write(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    # A fixed date, so that equal weights give equal files.
    file.writestr(zipfile.ZipInfo(f"{_FOLDER}/{name}"), content)


def _state_dict(arrays: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(_text(key) + _tensor(i, x) for i, (key, x) in enumerate(arrays.items()))
    content = _ordered_dict() + pickle.MARK + items + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + content + pickle.STOP


def _tensor(index: int, array: np.ndarray) -> bytes:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    arguments = (
        _storage(index, array),
        _integer(0),
        _tuple(map(_integer, array.shape)),
        _tuple(map(_integer, strides)),
        pickle.NEWFALSE,
        _ordered_dict(),
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE


def _storage(index: int, array: np.ndarray) -> bytes:
    kind = _global("torch", _STORAGES[array.dtype.name])
    parts = (_text("storage"), kind, _text(str(index)), _text("cpu"), _integer(array.size))
    return _tuple(parts) + pickle.BINPERSID


def _ordered_dict() -> bytes:
    return _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(parts: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded
