"""The settings that are worth measuring on the present GPU."""

from __future__ import annotations

from natjax.kernels.backends.jax_triton.config import KernelConfig
from natjax.kernels.backends.triton_common import candidates as common
from natjax.kernels.backends.triton_common import config
from natjax.kernels.backends.triton_common.candidates import variants as variants
from natjax.kernels.spec import CallSpec, Kernel


def candidates(kernel: Kernel, spec: CallSpec, limit: int) -> list[KernelConfig]:
    """The blocks of least estimated work that fit the device, after the suggested ones."""
    suggested = KernelConfig.suggest(kernel, spec)
    others = map(_own, common.candidates(kernel, spec, limit))
    return [suggested, *(x for x in others if x != suggested)][:limit]


def _own(x: config.KernelConfig) -> KernelConfig:
    return KernelConfig(x.tile, x.chunk, x.num_warps, x.num_stages)
