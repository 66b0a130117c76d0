"""The implementations of the ops, named once, and the choice between them.

An implementation is a module of `natjax.kernels.backends`. One of plain JAX has functions
``attention``, ``qk`` and ``av`` of one signature (see `natjax.kernels.backends.reference`). One of
kernels has what `natjax.kernels.spec.KernelBackend` says, and `natjax.kernels.kernel_ops` makes the
ops of it; or else it makes them itself, and they take the platform that a program must be lowered
for as their first argument. Each says "not here" (wrong device, dtype or shape for it) by raising
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
from natjax.kernels.cross_scale import with_more_heads
from natjax.kernels.spec import Op

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Implementation:
    """An implementation that there may be.

    Attributes:
      name: what users call it, and its module in ``package``.
      platform: the only platform that it is for, if any: elsewhere None passes over it unasked,
        since importing it takes longer than a call.
      aliases: further names that users may have written; what several share means the best of
        them that has what it needs.
      needs: modules of other packages that it is nothing without.
      by_name_only: whether None passes over it on every platform: what has never run on the device
        that it is for is nobody's default.
      interprets_in_order: whether its kernels, interpreted, have effects that JAX keeps in order,
        as it cannot in functions that it partitions.
      package: where its module is.
    """

    name: str
    platform: str | None = None
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    by_name_only: bool = False
    interprets_in_order: bool = False
    package: str = "natjax.kernels.backends"

    @property
    def module(self) -> str:
        """Import name."""
        return f"{self.package}.{self.name}".removeprefix(".")

    def has_needs(self) -> bool:
        """Whether the modules that it needs can be found."""
        return all(map(_is_there, self.needs))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is part of
        return False


# Best first. None picks the first that does not decline; "reference" accepts everything.
IMPLEMENTATIONS = (
    Implementation(
        "jax_triton", platform="gpu", aliases=("triton",), needs=("jax_triton", "triton")
    ),
    Implementation(
        "pallas_triton",
        platform="gpu",
        aliases=("triton",),
        needs=("jax.experimental.pallas.triton",),  # which JAX has deprecated
    ),
    Implementation("mosaic_gpu", platform="gpu", by_name_only=True, interprets_in_order=True),
    Implementation("mosaic_tpu", platform="tpu"),
    Implementation("xla"),
    Implementation("reference"),
)


# What JAX calls a platform when it lowers for it.
_LOWERED_AS = {"gpu": "cuda", "tpu": "tpu"}


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
    meant = [x for x in available().values() if name == x.name or name in x.aliases]
    if not meant:
        raise ValueError(f"implementation must be None or one of {names()}; got {name!r}")
    if len(meant) == 1:
        return meant[0].name
    return next((x for x in meant if x.has_needs()), meant[0]).name


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
        if candidate.by_name_only:
            continue
        try:
            platform = _platform_of(candidate)
            return load(op, candidate.name, platform)(*args, **kwargs)
        except NotImplementedError as error:
            _LOG.debug("%s: not %r: %s", op, candidate.name, error)
            refusals.append(error)
    raise ExceptionGroup(f"no implementation of {op} accepts this call", refusals)


def _platform_of(implementation: Implementation) -> str | None:
    """The platform that an implementation must be chosen for when a program is lowered, if any.

    Raises:
      NotImplementedError: it is for another platform than any that there is.
    """
    needed = implementation.platform
    if needed is None or device.is_interpreted():
        return None
    platforms = device.platforms()
    if needed not in platforms:
        raise NotImplementedError(
            f'implementation "{implementation.name}" needs a {needed} device; got '
            f"{', '.join(platforms)}"
        )
    return _LOWERED_AS[needed]


def load(op: Op, name: str, platform: str | None = None) -> Callable[..., Any]:
    """The function that is an op on an implementation.

    Args:
      op: which op.
      name: of the implementation.
      platform: for kernels: the only one, as JAX lowers for it, on which to run them; elsewhere
        they give way to `plain`.

    Raises:
      NotImplementedError: a package that it needs is not there, or has not got what it needs.
    """
    try:
        module = importlib.import_module(available()[name].module)
    except ImportError as error:
        raise NotImplementedError(
            f'implementation "{name}" cannot be imported here: {error}; use implementation=None, '
            f"or another of {names()}"
        ) from error
    if hasattr(module, "launch"):
        from natjax.kernels import kernel_ops  # which needs this module

        run = functools.partial(getattr(kernel_ops, op), module, platform)
        return with_more_heads(run)
    if available()[name].platform is not None:
        return with_more_heads(functools.partial(getattr(module, op), platform))
    return getattr(module, op)


def plain(op: Op) -> Callable[..., Any]:
    """An op on the best implementation in plain JAX, which has every derivative and platform."""
    name = next(x.name for x in available().values() if x.platform is None)
    return load(op, name)
