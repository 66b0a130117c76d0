"""The implementations of the ops, named once, and the choice between them.

An implementation is a module of `natjax.kernels.backends`. One of plain JAX has functions
``attention``, ``qk`` and ``av`` of one signature (see `natjax.kernels.backends.reference`). One of
kernels has what `natjax.kernels.spec.KernelBackend` says, and `natjax.kernels.autodiff` makes the
ops of it. Either says "not here" (wrong device, dtype or shape for it) by raising
`NotImplementedError`, naming what would work.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

from natjax.kernels import device
from natjax.kernels.spec import Op

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Implementation:
    """An implementation that there may be.

    Attributes:
      name: what users call it, and the module in `natjax.kernels.backends`.
      platform: the only platform that it is for, if any: elsewhere None passes over it unasked,
        since importing it takes longer than a call.
      aliases: further names that users may have written.
    """

    name: str
    platform: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Import name."""
        return f"natjax.kernels.backends.{self.name}"


# Best first. None picks the first that does not decline; "reference" accepts everything.
IMPLEMENTATIONS = (
    Implementation("pallas_triton", platform="gpu", aliases=("triton",)),
    Implementation("xla"),
    Implementation("reference"),
)


@functools.cache
def available() -> dict[str, Implementation]:
    """The installed implementations by name, best first; one goes with its module."""
    return {x.name: x for x in IMPLEMENTATIONS if importlib.util.find_spec(x.module)}


def names() -> tuple[str, ...]:
    """Names of the installed implementations, best first."""
    return tuple(available())


def canonical(name: str) -> str:
    """The name of an implementation that is given by its name or an alias.

    Raises:
      ValueError: there is none of that name.
    """
    for implementation in available().values():
        if name == implementation.name or name in implementation.aliases:
            return implementation.name
    raise ValueError(f"implementation must be None or one of {names()}; got {name!r}")


def call(op: Op, implementation: str | None, *args: Any, **kwargs: Any) -> Any:
    """Run an op on an implementation, or on the best one.

    Args:
      op: which op.
      implementation: name or alias; or None for the best that accepts the call, which never fails
        for want of an implementation.
      *args: passed on.
      **kwargs: passed on.

    Raises:
      ValueError: no implementation of that name.
      NotImplementedError: the named implementation does not support this call.
    """
    if implementation is not None:
        return load(op, canonical(implementation))(*args, **kwargs)
    refusals = []
    for candidate in available().values():
        try:
            _require_platform(candidate)
            return load(op, candidate.name)(*args, **kwargs)
        except NotImplementedError as error:
            _LOG.debug("%s: not %r: %s", op, candidate.name, error)
            refusals.append(error)
    raise ExceptionGroup(f"no implementation of {op} accepts this call", refusals)


def _require_platform(implementation: Implementation) -> None:
    needed = implementation.platform
    if needed is None or device.is_interpreted():
        return
    platform = device.target().platform
    if platform != needed:
        raise NotImplementedError(
            f'implementation "{implementation.name}" needs a {needed} device; got a {platform} '
            "device"
        )


def load(op: Op, name: str) -> Callable[..., Any]:
    """The function that is an op on an implementation."""
    module = importlib.import_module(available()[name].module)
    if hasattr(module, "launch"):
        from natjax.kernels import autodiff

        return functools.partial(getattr(autodiff, op), module)
    return getattr(module, op)
