"""The one place that calls jax-triton, and knows what has to be done about it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax_triton
from jax._src.interpreters import partial_eval
from jax_triton import triton_lib

# What Triton is to write. By itself it writes what its own assembler takes, which may be newer than
# XLA's: then XLA says "Unsupported .version". Version 8.8 is taken for every chip since Ampere.
_PTX_VERSION = 88


@functools.cache
def _prepare() -> None:
    """Let JAX drop kernels whose results nobody uses.

    jax-triton 0.4.1 has a rule of two arguments for that, where JAX passes three since 0.12.
    """

    def keep_all(used: list[bool], *rest: Any) -> tuple[list[bool], Any]:
        equation = rest[-1]
        if not any(used):
            return [False] * len(equation.invars), None
        return [True] * len(equation.invars), equation

    partial_eval.dce_rules[triton_lib.triton_kernel_call_p] = keep_all


def call(
    kernel: Any,
    grid: int,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    num_warps: int,
    num_stages: int,
    name: str,
    **statics: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel in Triton's language.

    Args:
      kernel: takes the arrays, the outputs, and what it is compiled for.
      grid: programs.
      arrays: what it reads.
      outputs: what it writes.
      num_warps: warps of a program.
      num_stages: chunks in flight.
      name: of the kernel, for profiles.
      **statics: what it is compiled for.
    """
    _prepare()
    return tuple(
        jax_triton.triton_call(
            *arrays,
            kernel=kernel,
            out_type=tuple(outputs),
            grid=(grid,),
            num_warps=num_warps,
            num_stages=num_stages,
            name=name,
            # Fused multiply and add is what Triton's default will not be.
            backend_options={"ptx_version": _PTX_VERSION, "enable_fp_fusion": True},
            **statics,
        )
    )
