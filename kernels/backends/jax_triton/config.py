"""What a kernel is compiled with, by rule of thumb."""

from __future__ import annotations

import dataclasses
import math

from natjax.kernels.backends.triton_common import config, resources
from natjax.kernels.spec import CallSpec, Kernel

# What `resources.registers` may come to. What is compiled takes up to a fifth more.
_REGISTERS = 200


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig(config.KernelConfig):
    """Settings of one kernel; its attributes are those of any kernel that Triton compiles."""

    @classmethod
    def suggest(cls, kernel: Kernel, spec: CallSpec) -> KernelConfig:
        """Settings by rule of thumb, with at most a warp for every 16 rows where those suffice.

        Tensor cores take 16 rows, so that further warps repeat what the others do. A warp less has
        more to keep in registers; with a chunk more in flight, for which
        the least GPU must have shared memory, ptxas finds room for it.
        """
        base = config.KernelConfig.suggest(kernel, spec)
        kept = cls(base.tile, base.chunk, base.num_warps, base.num_stages)
        if spec.dtype == "float32":
            return kept
        fewer = math.prod(base.tile) // 16
        while fewer < base.num_warps:
            chosen = dataclasses.replace(kept, num_warps=fewer)
            if resources.registers(kernel, spec, chosen) <= _REGISTERS:
                longer = dataclasses.replace(chosen, num_stages=3)
                fits = resources.shared_memory(kernel, spec, longer) <= resources.LEAST_SHARED
                return longer if fits else chosen
            fewer *= 2
        return kept
