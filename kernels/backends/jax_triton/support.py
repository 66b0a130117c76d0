"""Which calls the kernels take."""

from __future__ import annotations

import functools
import importlib.util

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


@functools.cache
def is_installed() -> bool:
    """Whether the packages that the kernels need are there."""
    return all(importlib.util.find_spec(name) for name in ("jax_triton", "triton"))
