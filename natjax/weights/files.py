"""Reader of files of weights, of whatever format."""

import json
import os
import struct
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - NumPy then knows bfloat16 by its name
import numpy as np

from natjax.weights.errors import WeightsError, show
from natjax.weights.formats import Format, open_weights
from natjax.weights.torch_file import read_open

_LONGEST_HEADER = 2**23
# Those that NumPy has, and bfloat16.
_DTYPES = {"BOOL", "U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64"} | {
    *("F16", "BF16", "F32", "F64", "C64")
}


@dataclass(frozen=True)
class SourceFile:
    """A file of weights that was read.

    Attributes:
      path: Where it is.
      format: ``"torch"`` or ``"safetensors"``.
      content: What it holds: for safetensors a dict of arrays; for torch whatever was saved.
      metadata: Texts that a safetensors file carries; empty for torch.
    """

    path: Path
    format: Format
    content: Any
    metadata: dict[str, str]


def read_file(path: str | os.PathLike[str], *, lenient: bool = False) -> SourceFile:
    """Read a file of weights; the format is recognised from its content.

    Args:
      path: The file.
      lenient: As for `natjax.weights.torch_file.read_torch`.

    Raises:
      WeightsError: the file is no such file, is damaged, or holds something else.
    """
    path = Path(path)
    with open_weights(path) as (file, size, kind):
        if kind == "torch":
            content = read_open(file, path, size, lenient=lenient)
            return SourceFile(path, kind, content, {})
        _check_header(file, path, size)
    return SourceFile(path, kind, *_read_safetensors(path))


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: safetensors files need a library: pip install 'natjax[convert]'"
        ) from error
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    # Beside its own error the library lets through those of NumPy, for shapes that it cannot make.
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: the file is not as safetensors files must be ({error}); download it again"
        ) from error
    except MemoryError as error:
        raise WeightsError(f"{path}: there is not enough memory for the file") from error


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _DTYPES:
        raise WeightsError(
            f"{path}: tensor {show(name)} must be of a dtype among {', '.join(sorted(_DTYPES))},"
            f" got {dtype}"
        )
    return file.get_tensor(name)


def _check_header(file: BufferedIOBase, path: Path, size: int) -> None:
    """Compare declared sizes with the file, which also tells a cut-off file from a wrong one."""
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    if length > _LONGEST_HEADER:
        raise WeightsError(
            f"{path}: a safetensors header must have at most {_LONGEST_HEADER} bytes, got {length}"
        )
    if 8 + length > size:
        raise WeightsError(f"{path}: the file is cut off within its header; download it again")
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if not all(type(end) is int for end in ends):
            raise ValueError("offsets must be integers")
        end = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the safetensors header is damaged; download it again"
        ) from error
    if end != size:
        raise WeightsError(
            f"{path}: the file must have {end} bytes by its header, got {size}; it is cut off or"
            " damaged, download it again"
        )
