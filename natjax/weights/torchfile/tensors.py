"""Storages and tensors of PyTorch files, as NumPy arrays.

A tensor is a view of a storage, described by offset, sizes and strides that a file may choose
freely; nothing is built before they are checked against the storage.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from natjax.weights.untrusted import Source, show

_MOST_AXES = 16
_LARGEST = 2**62  # bytes; keeps shapes of no elements within what NumPy can describe

_TORCH_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex128": np.complex128,
    "complex64": np.complex64,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}

DTYPES = {f"torch.{name}": np.dtype(dtype) for name, dtype in _TORCH_DTYPES.items()}
STORAGE_DTYPES = {f"torch.{name}": DTYPES[f"torch.{kind}"] for name, kind in _STORAGES.items()} | {
    "torch.storage.UntypedStorage": np.dtype(np.uint8)
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """What stands in a file's content for an object that was not built.

    Attributes:
      name: Its class or function, such as ``argparse.Namespace``.
    """

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Storage(Skipped):
    """Values that tensors share.

    Attributes:
      dtype: Type of the values; uint8 where the file leaves it to the tensors.
      data: The bytes, a uint8 array.
    """

    dtype: np.dtype
    data: np.ndarray


class Storages:
    """The storages of one file, each made once.

    Args:
      source: The file.
      fetch: Gives the uint8 array of a storage from its key, its size in bytes and its type, such
        as ``torch.FloatStorage``; it may be filled later, but before `check_truths`.
    """

    def __init__(self, source: Source, fetch: Callable[[str, int, str], np.ndarray]):
        self._source = source
        self._fetch = fetch
        self._made: dict[str, Storage] = {}
        self._truths: dict[int, np.ndarray] = {}

    def get(self, identity: Any) -> Skipped:
        """Return the storage that a persistent id names; a stand-in where it names something else.

        Args:
          identity: ``("storage", type, key, device, elements)``; the format without zip adds a
            view, None or ``(key, first element, elements)``.
        """
        # Types first: an array from the file matches a pattern of a sequence, and compares as one.
        match identity if type(identity) is tuple else ():
            case (str(kind), Skipped(name), str(key), str(), int(count), *view) if (
                kind == "storage" and len(view) < 2
            ):
                pass
            case (str(kind), *_) if kind != "storage":
                return Skipped(kind)
            case _:
                raise self._source.error(
                    f"a persistent id must name a storage, got {show(identity)}"
                )
        if name not in STORAGE_DTYPES:
            return Skipped(name)
        storage = self._whole(name, key, count)
        return self._view(storage, view[0]) if view and view[0] is not None else storage

    def _whole(self, name: str, key: str, count: int) -> Storage:
        dtype = STORAGE_DTYPES[name]
        what = f"the size of storage {show(key)}"
        size = check_nonnegative(count, what, self._source) * dtype.itemsize
        known = self._made.get(key)
        if known is None:
            known = Storage(name, dtype, self._fetch(key, size, name))
            self._made[key] = known
        if known.name != name or known.data.size != size:
            raise self._source.error(
                f"storage {show(key)} must be the same wherever it is named, got {known.data.size}"
                f" bytes of {known.name} and {size} of {name}"
            )
        return known

    def _view(self, whole: Storage, view: Any) -> Storage:
        match view if type(view) is tuple else ():
            case (str(), int(first), int(count)) if first >= 0 and count >= 0:
                pass
            case _:
                raise self._source.error(f"a view must be (key, start, size), got {show(view)}")
        start, end = (n * whole.dtype.itemsize for n in (first, first + count))
        if end > whole.data.size:
            raise self._source.error(
                f"a view must end within its storage of {whole.data.size} bytes, got {end}"
            )
        return Storage(whole.name, whole.dtype, whole.data[start:end])

    def tensor(
        self, storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any
    ) -> np.ndarray:
        """Return a tensor as a read-only view of its storage.

        Args:
          storage: The bytes.
          dtype: Type of the elements.
          offset: First element, counted from the start of the storage.
          shape: Sizes, a tuple of ints.
          strides: Steps along each axis, in elements; a tuple of ints.
        """
        if dtype == np.bool_:
            self._truths[id(storage.data)] = storage.data
        _check_layout(
            storage.data.size // dtype.itemsize, dtype, offset, shape, strides, self._source
        )
        return _view_array(storage.data, dtype, offset, shape, strides)

    def check_truths(self) -> None:
        """Refuse other bytes than 0 and 1 where bools are: NumPy's bool is undefined for them.

        Whole storages are looked at, each once, when all are filled.
        """
        for data in self._truths.values():
            self._source.charge(data.size)
            if np.any(data > 1):
                raise self._source.error("truth values must be 0 or 1; the file is damaged")


def _check_layout(
    held: int,
    dtype: np.dtype,
    offset: Any,
    shape: Any,
    strides: Any,
    source: Source,
) -> None:
    """Refuse whatever is no layout, or reaches beyond a storage of `held` elements."""
    check_nonnegative(offset, "the offset of a tensor", source)
    for what, values in (("shape", shape), ("strides", strides)):
        if not isinstance(values, tuple) or len(values) > _MOST_AXES:
            raise source.error(
                f"a tensor must have {what} for up to {_MOST_AXES} axes, got {show(values)}"
            )
        for value in values:
            check_nonnegative(value, f"every entry of a tensor's {what}", source)
    if len(shape) != len(strides):
        raise source.error(f"shape {show(shape)} must have as many axes as strides {show(strides)}")
    _check_bounds(held, dtype, offset, shape, strides, source)


def _check_bounds(
    held: int,
    dtype: np.dtype,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    source: Source,
) -> None:
    """Every element within the storage, and no more elements than it holds (strides can be 0)."""
    count = math.prod(shape)
    # An axis of one element takes no step, whatever its stride says; an empty tensor takes none.
    steps = ((size - 1) * step for size, step in zip(shape, strides, strict=True) if size > 1)
    end = offset + sum(steps) + 1 if count else offset
    sizes = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if max(end, count) > held or sizes > _LARGEST:
        raise source.error(
            f"a tensor of shape {show(shape)}, strides {show(strides)} and offset {show(offset)}"
            f" must lie within its storage of {held} elements"
        )


def _view_array(
    data: np.ndarray,
    dtype: np.dtype,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> np.ndarray:
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    array = np.ndarray(
        shape,
        dtype,
        buffer=data,
        offset=offset * dtype.itemsize,
        # The step of an axis of one element may be anything, so that is left unused.
        strides=tuple(
            (step if size > 1 else 1) * dtype.itemsize
            for size, step in zip(shape, strides, strict=True)
        ),
    )
    array.flags.writeable = False  # others may look at the same bytes
    return array


def check_nonnegative(value: Any, what: str, source: Source) -> int:
    """Return an integer of at least 0.

    Args:
      value: Of the file.
      what: What it says, for the message.
      source: The file.

    Raises:
      WeightsError: it is something else.
    """
    if type(value) is not int or value < 0:  # a bool is no number here
        raise source.error(f"{what} must be an integer of at least 0, got {show(value)}")
    return value
