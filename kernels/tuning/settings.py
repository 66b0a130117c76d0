"""What a kernel is compiled with, and where that comes from.

First match wins:

1. `using`, for tests and for tuning;
2. the table of the device's kind in the folder that the environment variable NATJAX_TUNED names;
3. the table of the device's kind that natjax brings;
4. the backend's rule of thumb.

Tables (`natjax.kernels.tuning.tables`) are written by ``natjax tune`` and keyed by the exact
`CallSpec`. There is no nearest match. How lengths divide into tiles decides between settings, so
that a neighbor's are no better founded than the rule of thumb.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from natjax.kernels.spec import CallSpec, Kernel, KernelBackend
from natjax.kernels.tuning import tables

# Of the context, since several threads may trace at once; the last one given comes first.
_given: contextvars.ContextVar[tuple[Mapping[Kernel, Any], ...]] = contextvars.ContextVar(
    "settings given", default=()
)


@contextlib.contextmanager
def using(chosen: Mapping[Kernel, Any]) -> Iterator[None]:
    """Within the context, use these settings for the kernels named.

    They are for the backend whose settings they are, and for the thread at hand. They act when an
    op is traced; a function that `jax.jit` has compiled before keeps its own.
    """
    token = _given.set((chosen, *_given.get()))
    try:
        yield
    finally:
        _given.reset(token)


def given() -> dict[Kernel, Any]:
    """The settings of the contexts of `using` at hand."""
    merged: dict[Kernel, Any] = {}
    for chosen in reversed(_given.get()):
        merged.update(chosen)
    return merged


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved:
    """The settings of a kernel for a call, and where they come from.

    Attributes:
      kernel: which kernel.
      spec: what the settings are for.
      config: the settings.
      source: "given", "NATJAX_TUNED", "tuned" or "suggested", as this module's head has them.
    """

    kernel: Kernel
    spec: CallSpec
    config: Any
    source: str


_watchers: contextvars.ContextVar[tuple[list[Resolved], ...]] = contextvars.ContextVar(
    "lists of settings resolved", default=()
)


@contextlib.contextmanager
def watching() -> Iterator[list[Resolved]]:
    """Within the context, list the settings that ops resolve as this thread traces them."""
    seen: list[Resolved] = []
    token = _watchers.set((*_watchers.get(), seen))
    try:
        yield seen
    finally:
        _watchers.reset(token)


def resolve(
    backend: KernelBackend, kernel: Kernel, spec: CallSpec, device_kind: str
) -> tuple[Any, str]:
    """The settings of a kernel, and where they come from (see `Resolved`)."""
    config, source = _resolve(backend, kernel, spec, device_kind)
    for seen in _watchers.get():
        seen.append(Resolved(kernel, spec, config, source))
    return config, source


def _resolve(
    backend: KernelBackend, kernel: Kernel, spec: CallSpec, device_kind: str
) -> tuple[Any, str]:
    config = given().get(kernel)
    if isinstance(config, backend.settings):
        return config, "given"
    for source, folder in tables.folders().items():
        path = tables.path_of(backend.NAME, device_kind, folder)
        tuned = tables.tuned(path, backend.settings).get(spec.key, {}).get(kernel)
        if tuned is not None:
            return tuned, source
    return backend.settings.suggest(kernel, spec), "suggested"
