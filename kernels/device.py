"""The devices that a program may be for, and whether kernels are interpreted instead."""

from __future__ import annotations

import os
from typing import Any

import jax

INTERPRET = "NATJAX_INTERPRET"


def is_interpreted() -> bool:
    """Whether kernels run interpreted: the environment variable NATJAX_INTERPRET is 1."""
    return os.environ.get(INTERPRET, "0") == "1"


def targets() -> tuple[Any, ...]:
    """Devices that a program that is traced now may be compiled for, the likeliest first.

    An abstract mesh says for certain. Otherwise it is the default device, unless arrays are
    committed to another, which is not known before the program is lowered.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return (abstract,)
    default = jax.config.jax_default_device
    if isinstance(default, str):
        default = jax.devices(default)[0]
    best = jax.devices()[0]
    return (best,) if default is None else (default, best)


def platforms() -> tuple[str, ...]:
    """Their platforms, as JAX names those of devices."""
    return tuple(dict.fromkeys(device.platform for device in targets()))


def target(platform: str | None = None) -> Any:
    """The likeliest device that a program is compiled for, of a platform if there is one of it."""
    devices = targets()
    return next((x for x in devices if x.platform == platform), devices[0])


def kind(platform: str | None = None) -> str:
    """What settings of kernels are tuned for: the device's kind, or "interpreted"."""
    return "interpreted" if is_interpreted() else target(platform).device_kind


def computed_once(x: jax.Array) -> jax.Array:
    """``x``, to be stored before it is used, on a CPU.

    XLA for CPUs computes a chain of cheap operations anew for each of its users, however long the
    chain, and transposed where a matrix product wants it so. On other platforms ``x`` as it is:
    there XLA knows better.
    """
    return jax.lax.optimization_barrier(x) if target().platform == "cpu" else x
