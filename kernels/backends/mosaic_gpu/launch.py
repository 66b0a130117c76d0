"""Launching the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array

from natjax.kernels.backends.mosaic_gpu.fused import launch as fused
from natjax.kernels.backends.mosaic_gpu.unfused import launch as unfused
from natjax.kernels.sharding.partitioning import align_varying
from natjax.kernels.spec import Kernel, KernelCall

_LAUNCHES: dict[Kernel, Callable[..., tuple[Array, ...]]] = {
    "forward": fused.forward,
    "dquery": fused.dquery,
    "dkeyvalue": fused.dkeyvalue,
    "dbias": fused.dbias,
    "qk": unfused.qk,
    "av": unfused.av,
    "av_transposed": unfused.av_transposed,
}


@functools.partial(jax.jit, static_argnums=(0, 1))  # its own, since plans become constants of it
def launch(kernel: Kernel, call: KernelCall, *arrays: Array) -> tuple[Array, ...]:
    """Run a kernel; `natjax.kernels.kernel_ops` has what each takes and returns."""
    results = _LAUNCHES[kernel](call, *arrays)
    # Pallas does not say over which axes of a mesh its results vary.
    return align_varying(*results, arrays[0])[:-1]
