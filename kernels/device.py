"""The device that is compiled for, and whether Pallas kernels are interpreted on it instead."""

from __future__ import annotations

import os
from typing import Any

import jax

INTERPRET = "NATJAX_INTERPRET"


def is_interpreted() -> bool:
    """Whether kernels run interpreted: the environment variable NATJAX_INTERPRET is 1."""
    return os.environ.get(INTERPRET, "0") == "1"


def target() -> Any:
    """The device that is compiled for, real or abstract: the abstract mesh's, else the default."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return abstract
    default = jax.config.jax_default_device
    if isinstance(default, str):
        return jax.devices(default)[0]
    return default if default is not None else jax.devices()[0]


def kind() -> str:
    """What settings of kernels are tuned for: the device's kind, or "interpreted"."""
    return "interpreted" if is_interpreted() else target().device_kind
