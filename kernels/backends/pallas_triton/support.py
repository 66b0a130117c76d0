"""Which calls the kernels take."""

from __future__ import annotations

import math
from typing import Any

from natjax.kernels import device
from natjax.kernels.spec import CallSpec, Op

NAME = "pallas_triton"
_DTYPES = ("bfloat16", "float16", "float32")
_LARGEST_HEAD = 256
# Rows of arrays are numbered by 32-bit integers.
_INDEXABLE = 2**31


def supports(op: Op, spec: CallSpec, shape: tuple[int, ...]) -> None:
    """Check that the kernels take a call.

    Raises:
      NotImplementedError: they do not; the message says what would work.
    """
    _require_device()
    if spec.dtype not in _DTYPES:
        raise NotImplementedError(
            f'implementation "{NAME}" takes the dtypes {_DTYPES}; got {spec.dtype}; use '
            'implementation="xla"'
        )
    largest = max(spec.head_dim, spec.value_dim)
    if largest > _LARGEST_HEAD:
        raise NotImplementedError(
            f'implementation "{NAME}" takes head sizes up to {_LARGEST_HEAD}; got {largest}; use '
            'implementation="xla"'
        )
    slots = 1 if op == "attention" else spec.neighborhood.num_neighbors
    _require_indexable(math.prod(shape[:-1]) * slots)


def _require_device() -> None:
    target = device.target()
    if device.is_interpreted() or _is_ampere_or_later(target):
        return
    raise NotImplementedError(
        f'implementation "{NAME}" needs an NVIDIA GPU, Ampere or later; got {target.device_kind!r} '
        f'({target.platform}); use implementation="xla", or set the environment variable '
        f"{device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
    )


def _is_ampere_or_later(target: Any) -> bool:
    """Abstract devices tell their kind alone; older ones are refused when they are compiled for."""
    capability = getattr(target, "compute_capability", "8.0")
    is_nvidia = str(capability).replace(".", "", 1).isdigit()  # "9.0", or "gfx942" for AMD's
    return target.platform == "gpu" and is_nvidia and float(capability) >= 8


def _require_indexable(entries: int) -> None:
    if entries >= _INDEXABLE:
        raise NotImplementedError(
            f'implementation "{NAME}" takes fewer than 2**31 queries, times heads, and times '
            f'window slots in the unfused ops; got {entries}; use implementation="xla"'
        )
