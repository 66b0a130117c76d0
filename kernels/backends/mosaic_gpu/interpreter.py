"""Pallas' interpreter of kernels for GPUs, which tests run them in."""

from __future__ import annotations

import functools

from jax.experimental.pallas import mosaic_gpu as plgpu


@functools.cache
def params() -> plgpu.InterpretGPUParams:
    """What kernels are interpreted with: a race between warpgroups or copies is an error.

    JAX 0.12 lets a loop contain a product of a warpgroup, but knows no lowering of such a loop for
    a CPU, where the interpreter has replaced the product by a callback: it has to be told that
    nothing is left to be lowered.
    """
    from jax._src import effects
    from jax._src.pallas.mosaic_gpu import core

    effects.lowerable_effects.add_type(core._WGMMAPipelineEffect)
    return plgpu.InterpretGPUParams(detect_races=True)
