"""The settings that are worth measuring on the present GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math

from natjax.kernels import device
from natjax.kernels.backends.triton_common import config, resources
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.spec import CallSpec, Kernel

# Rows and columns of the largest blocks that are tried.
_LARGEST_BLOCK = (128, 128)
_WARPS = (1, 2, 4, 8)
_STAGES = (1, 2, 3, 4)


def candidates(kernel: Kernel, spec: CallSpec, limit: int) -> list[KernelConfig]:
    """The blocks of least estimated work that fit the device, after the suggested ones."""
    suggested = KernelConfig.suggest(kernel, spec)
    # Until warps have their turn, blocks are compared with as many as suit them.
    fitting = (
        best
        for option in config.blocks_within(kernel, spec, _LARGEST_BLOCK)
        if (best := _with_warps(kernel, spec, option)) is not None and best != suggested
    )
    ranked = sorted(fitting, key=lambda option: config.cost(kernel, spec, option))
    return [suggested, *ranked[: limit - 1]]


def _with_warps(kernel: Kernel, spec: CallSpec, start: KernelConfig) -> KernelConfig | None:
    """The same blocks with the suggested warps, or the nearest number of them that fits."""
    options = sorted(_WARPS, key=lambda warps: abs(math.log2(warps / start.num_warps)))
    for warps in options:
        option = dataclasses.replace(start, num_warps=warps)
        if _fits(kernel, spec, option):
            return option
    return None


def variants(kernel: Kernel, spec: CallSpec, start: KernelConfig) -> list[KernelConfig]:
    """The same blocks with other warps and stages that fit the device, least changed first."""

    def change(option: KernelConfig) -> float:
        warps = math.log2(option.num_warps / start.num_warps)
        return abs(warps) + abs(option.num_stages - start.num_stages)

    options = (
        dataclasses.replace(start, num_warps=warps, num_stages=stages)
        for warps, stages in itertools.product(_WARPS, _STAGES)
    )
    others = [x for x in options if x != start and _fits(kernel, spec, x)]
    return sorted(others, key=change)


def _fits(kernel: Kernel, spec: CallSpec, option: KernelConfig) -> bool:
    capability = getattr(device.target(), "compute_capability", None)
    return resources.fits(kernel, spec, option, capability)
