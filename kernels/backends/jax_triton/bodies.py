"""The kernels by name, compiled or interpreted. Importing this imports Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from natjax.kernels.backends.jax_triton import fused, interpreter, library, unfused
from natjax.kernels.spec import Kernel

_BODIES: dict[Kernel, Any] = {
    "forward": fused.forward,
    "dquery": fused.dquery,
    "dkeyvalue": fused.dkeyvalue,
    "dbias": fused.dbias,
    "qk": unfused.qk,
    "av": unfused.av,
    "av_transposed": unfused.av_transposed,
}


def run(
    kernel: Kernel,
    grid: int,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    interpret: bool,
    num_warps: int,
    num_stages: int,
    s: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel; see `natjax.kernels.backends.jax_triton.library.call`."""
    if interpret:
        return interpreter.call(_BODIES[kernel], grid, arrays, outputs, s=s)
    return library.call(
        _BODIES[kernel],
        grid,
        arrays,
        outputs,
        num_warps=num_warps,
        num_stages=num_stages,
        name=f"natjax_{kernel}",
        s=s,
    )
