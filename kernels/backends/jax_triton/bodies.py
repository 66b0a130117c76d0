"""The kernels by name, compiled or interpreted. Importing this imports Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from natjax.kernels.backends.jax_triton import interpreter, library
from natjax.kernels.backends.jax_triton.language import backward, forward, unfused

_BODIES: dict[str, Any] = {
    "forward": forward.forward,
    "dquery": backward.dquery,
    "dquery_and_dbias": backward.dquery_and_dbias,
    "dkeyvalue": backward.dkeyvalue,
    "dbias": backward.dbias,
    "qk": unfused.qk,
    "av": unfused.av,
    "av_transposed": unfused.av_transposed,
}


def run(
    body: str,
    grid: int,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    name: str,
    interpret: bool,
    num_warps: int,
    num_stages: int,
    s: Any,
) -> tuple[jax.Array, ...]:
    """Run the kernel with this body; see `natjax.kernels.backends.jax_triton.library.call`."""
    if interpret:
        return interpreter.call(_BODIES[body], grid, arrays, outputs, s=s)
    return library.call(
        _BODIES[body],
        grid,
        arrays,
        outputs,
        num_warps=num_warps,
        num_stages=num_stages,
        name=name,
        s=s,
    )
