"""What the names in a PyTorch file stand for: the few that are built, none of them called.

A pickle names Python functions and classes. Here a name is only a string, looked up in a table; no
module is imported and nothing of the file is executed. What a builder does takes work in proportion
to its arguments and their entries, which the machine charges before it asks for it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from natjax.weights.torchfile.tensors import DTYPES, Skipped, Storage, Storages
from natjax.weights.untrusted import Source, show


def _ordered_dict(args: tuple[Any, ...], storages: Storages, source: Source) -> dict[Any, Any]:
    """Entries follow by themselves; Python 2 wrote them as pairs in a list."""
    match args:
        case ():
            return {}
        case (list(pairs),):
            result: dict[Any, Any] = {}
            for pair in pairs:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise source.error(f"an OrderedDict must be made of pairs, got {show(pair)}")
                if type(pair[0]) is not str:
                    raise source.error(
                        f"a key of an OrderedDict must be a string, got {show(pair[0])}"
                    )
                result[pair[0]] = pair[1]
            return result
    raise source.error(f"an OrderedDict must be made of a list, got {len(args)} arguments")


def _size(args: tuple[Any, ...], storages: Storages, source: Source) -> tuple[int, ...]:
    match args:
        case (tuple(sizes),) if all(type(size) is int for size in sizes):
            return sizes
    raise source.error("a torch.Size must be made of one tuple of integers")


def _tensor(args: tuple[Any, ...], storages: Storages, source: Source) -> np.ndarray | Skipped:
    """Arguments: storage, offset, shape, strides, requires_grad, hooks and metadata.

    The last three may be missing.
    """
    match args:
        case (Storage() as storage, offset, shape, strides, *rest) if len(rest) <= 3:
            _refuse_metadata(rest[2:], source)
            return storages.tensor(storage, storage.dtype, offset, shape, strides)
        case (Skipped() as skipped, _, _, _, *_) if not isinstance(skipped, Storage):
            return skipped  # a storage of a type without a NumPy counterpart
    raise source.error(f"a tensor must be made of a storage and its layout, got {_types(args)}")


def _tensor_of_dtype(
    args: tuple[Any, ...], storages: Storages, source: Source
) -> np.ndarray | Skipped:
    """Arguments: storage of bytes, offset, shape, strides, requires_grad, hooks and dtype.

    Metadata may follow.
    """
    match args:
        case (Storage() as storage, offset, shape, strides, _, _, Skipped(name), *rest) if (
            name in DTYPES and len(rest) <= 1
        ):
            _refuse_metadata(rest, source)
            return storages.tensor(storage, DTYPES[name], offset, shape, strides)
        case (Skipped(), _, _, _, _, _, Skipped() as skipped, *_):
            return skipped
    raise source.error(
        f"a tensor must be made of a storage, its layout and a dtype, got {_types(args)}"
    )


def _parameter(args: tuple[Any, ...], storages: Storages, source: Source) -> np.ndarray | Skipped:
    """Arguments: tensor, requires_grad, hooks, and attributes where there are any."""
    if len(args) in (3, 4) and isinstance(args[0], np.ndarray | Skipped):
        return args[0]
    raise source.error(f"a parameter must be made of a tensor, got {_types(args)}")


def _refuse_metadata(rest: list[Any], source: Source) -> None:
    """Metadata say that the values are to be negated or conjugated, which no weights need."""
    for metadata in rest:
        if metadata is not None and not (isinstance(metadata, dict) and len(metadata) == 0):
            raise source.error(
                "a tensor must be stored as it is, not marked as negated or conjugated"
            )


def _types(args: tuple[Any, ...]) -> str:
    return f"({', '.join(type(arg).__name__ for arg in args[:8])})"


BUILDERS: dict[str, Callable[[tuple[Any, ...], Storages, Source], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
