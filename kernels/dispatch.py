"""Which implementation runs an op.

An implementation is a module ``natjax.kernels.<name>`` with functions ``attention``, ``qk`` and
``av`` of one signature (see `natjax.kernels.reference`). It says "not here" (wrong device, dtype or
shape for it) by raising `NotImplementedError`, naming what would work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

from natjax.kernels import device

# Best first. None picks the first that does not decline; "reference" accepts everything.
PREFERENCE = ("triton", "xla", "reference")
# Those for one platform alone: elsewhere None passes over them unasked, since importing them takes
# longer than a call.
_PLATFORM = {"triton": "gpu"}


@functools.cache
def available() -> tuple[str, ...]:
    """Names of the installed implementations, best first."""
    names = (name for name in PREFERENCE if importlib.util.find_spec(f"natjax.kernels.{name}"))
    return tuple(names)


def call(op: str, implementation: str | None, *args: Any, **kwargs: Any) -> Any:
    """Run ``op`` ("attention", "qk" or "av") on an implementation, or on the best one.

    Args:
      op: name of the function in the implementation's module.
      implementation: its name; or None for the best that accepts the call, which never fails for
        want of an implementation.
      *args: passed on.
      **kwargs: passed on.

    Raises:
      ValueError: no implementation of that name.
      NotImplementedError: the named implementation does not support this call.
    """
    if implementation is not None:
        return getattr(_load(implementation), op)(*args, **kwargs)
    refusals = []
    for name in available():
        try:
            _require_platform(name)
            return getattr(_load(name), op)(*args, **kwargs)
        except NotImplementedError as error:
            refusals.append(error)
    raise ExceptionGroup(f"no implementation of {op} accepts this call", refusals)


def _require_platform(name: str) -> None:
    needed = _PLATFORM.get(name)
    if needed is None or device.is_interpreted():
        return
    platform = device.target().platform
    if platform != needed:
        raise NotImplementedError(
            f'implementation "{name}" needs a {needed} device; got a {platform} device'
        )


def _load(name: str) -> Any:
    if name not in available():
        raise ValueError(f"implementation must be None or one of {available()}; got {name!r}")
    return importlib.import_module(f"natjax.kernels.{name}")
