"""What a kernel is compiled with, by rule of thumb."""

from __future__ import annotations

import dataclasses
import math

from natjax.kernels.backends.triton_common import config, resources
from natjax.kernels.spec import CallSpec, Kernel, blocks_of

# What `resources.registers` may come to. What is compiled takes up to a fifth more.
_REGISTERS = 200
# The same of `resources.slab_registers`. What sums a slab for the bias takes half as much again.
_SLAB_REGISTERS = {"forward": 200, "dquery": 180}
# The most chunks that a slab is written out in, and so copies of a loop's body.
_MOST_CHUNKS = 8
# The widest heads of which fewer warps have room for the sums.
_WIDEST_OF_FEW = 128
# The widest heads beside which there is room for a slab's sums.
_WIDEST_SUMMED = 64


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig(config.KernelConfig):
    """Settings of one kernel; its attributes are those of any kernel that Triton compiles."""

    @classmethod
    def suggest(cls, kernel: Kernel, spec: CallSpec) -> KernelConfig:
        """Settings by rule of thumb, with at most a warp for every 16 rows where those suffice.

        Tensor cores take 16 rows, so that further warps repeat what the others do. A warp less has
        more to keep in registers; with a chunk more in flight, for which the least GPU must have
        shared memory, ptxas finds room for it. Where the gradient of a bias can be summed with that
        of queries, it is, if need be in smaller tiles.
        """
        chosen = cls._with_few_warps(kernel, spec)
        if kernel != "dquery" or not spec.has_bias or chosen.sums_bias(spec):
            return chosen
        return cls._of_small_tiles(spec) or chosen

    @classmethod
    def _with_few_warps(cls, kernel: Kernel, spec: CallSpec) -> KernelConfig:
        base = config.KernelConfig.suggest(kernel, spec)
        kept = cls(base.tile, base.chunk, base.num_warps, base.num_stages)
        if spec.dtype == "float32" or _width(spec) > _WIDEST_OF_FEW:
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

    @classmethod
    def _of_small_tiles(cls, spec: CallSpec) -> KernelConfig | None:
        """Of 16 rows, the settings of "dquery" with which it sums the bias, if there are any.

        Warps share the columns of so few rows. More columns are loaded for each row than of larger
        tiles; but all that "dbias" would load and compute is spared.
        """
        if spec.dtype == "float32" or _width(spec) > _WIDEST_SUMMED:
            return None
        options = (
            cls(x.tile, x.chunk, num_warps=2)
            for x in config.blocks_within("dquery", spec, (16, 32))
        )
        summing = [x for x in options if x.sums_bias(spec)]
        return min(summing, key=lambda x: config.cost("dquery", spec, x), default=None)

    def holds_slab(self, kernel: Kernel, spec: CallSpec) -> bool:
        """Whether registers hold what a kernel computes of a tile's whole slab.

        Then "forward" does without an online softmax, and "dquery" may sum the gradient of the
        bias. The other kernels have nothing to gain from it.
        """
        if kernel not in ("forward", "dquery"):
            return False
        if kernel == "dquery" and _width(spec) > _WIDEST_SUMMED:
            return False
        chunks = blocks_of(kernel, self, spec.neighborhood).num_chunks
        return (
            chunks <= _MOST_CHUNKS
            and resources.slab_registers(kernel, spec, self, chunks) <= _SLAB_REGISTERS[kernel]
        )

    def sums_bias(self, spec: CallSpec) -> bool:
        """Whether "dquery" with these settings sums the gradient of the bias as well.

        It does where the sums for a tile's slab fit registers: then neither queries, keys, values
        and gradients are read once more for them, nor weights computed. Where they do not, as with
        large windows, wide heads or float32, the kernel "dbias" sums a block at a time.
        """
        return self.holds_slab("dquery", spec)


def _width(spec: CallSpec) -> int:
    """The wider head size, as kernels see it."""
    return config.padded_head_dim(max(spec.head_dim, spec.value_dim))
