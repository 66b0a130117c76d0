"""Which calls the kernels take."""

from __future__ import annotations

import functools
import importlib.util

from natjax.kernels import device
from natjax.kernels.backends.triton_common.support import require
from natjax.kernels.spec import CallSpec, Op

NAME = "jax_triton"


def supports(op: Op, spec: CallSpec) -> None:
    """Check that the kernels take a call; all ops alike.

    Raises:
      NotImplementedError: they do not, or jax-triton is not installed; the message says what would
        work.
    """
    if not is_installed():
        raise NotImplementedError(
            f'implementation "{NAME}" needs the packages jax-triton and triton: '
            "pip install 'natjax[triton]'"
        )
    del op
    require(NAME, spec)
    if not device.is_interpreted() and not has_plugin():
        raise NotImplementedError(
            f'implementation "{NAME}" compiles its kernels with JAX\'s plugin for CUDA, which is'
            " not installed: pip install 'natjax[gpu]'"
        )


@functools.cache
def is_installed() -> bool:
    """Whether the packages that the kernels need are there."""
    return all(importlib.util.find_spec(name) for name in ("jax_triton", "triton"))


@functools.cache
def has_plugin() -> bool:
    """Whether JAX can make programs for CUDA here, with a GPU or without."""
    return any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13))
