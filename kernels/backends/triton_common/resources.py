"""What a GPU kernel takes of a multiprocessor, estimated without compiling it.

Shared memory agrees to the byte with what was compiled for Hopper; Ampere takes a stage less.
Registers are a lower bound: what accumulators and blocks of logits alone need, and the least seen
beside them. So what is refused here would not compile or would spill; what is not may still.
"""

from __future__ import annotations

import dataclasses
import math

from natjax.kernels.backends.triton_common.config import (
    KernelConfig,
    multiplies_by_thirds,
    padded_head_dim,
)
from natjax.kernels.spec import CallSpec, Kernel

# KiB of shared memory that a block may have, by compute capability.
_SHARED_KIB = {"8.0": 163, "8.7": 163, "9.0": 227, "10.0": 227, "10.3": 227}
_LEAST_SHARED_KIB = 99
# Bytes of it that any GPU has for a block.
LEAST_SHARED = _LEAST_SHARED_KIB * 1024
_REGISTERS_OF_THREAD = 255
_REGISTERS_OF_BLOCK = 65536
# Addresses, counters and what else a thread keeps.
_OTHER_REGISTERS = 32
# The least entries of a block of logits that keep a thread of tensor cores busy.
_ENTRIES_OF_THREAD = 4


@dataclasses.dataclass(frozen=True, slots=True)
class _Needs:
    """What a kernel keeps, in units of the head size of queries and keys, and of values.

    Attributes:
      rows: of each row, loaded once.
      columns: of each column, loaded for every chunk.
      sums: of each row, accumulated in float32.
      blocks: float32 numbers for each entry of a block.
      halves: numbers of the input's dtype for each entry of a block.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    sums: tuple[int, int]
    blocks: int
    halves: int = 1


_NEEDS: dict[Kernel, _Needs] = {
    "forward": _Needs((1, 0), (1, 1), (0, 1), 1),
    "dquery": _Needs((1, 1), (1, 1), (1, 0), 2),
    "dkeyvalue": _Needs((1, 1), (1, 1), (1, 1), 2),
    "dbias": _Needs((1, 1), (1, 1), (0, 0), 3, 0),
    "qk": _Needs((1, 0), (1, 0), (0, 0), 2, 0),
    "av": _Needs((0, 0), (0, 1), (0, 1), 1),
    "av_transposed": _Needs((0, 0), (0, 1), (0, 1), 1),
}
_TAKE_A_TABLE = ("forward", "dquery", "dkeyvalue", "qk")


def registers(kernel: Kernel, spec: CallSpec, config: KernelConfig) -> int:
    """Registers of a thread, at least."""
    needs = _NEEDS[kernel]
    rows, columns = math.prod(config.tile), math.prod(config.chunk)
    words = rows * _width(needs.sums, spec)
    words += rows * columns * (needs.blocks + needs.halves * _bytes(spec) / 4)
    return _OTHER_REGISTERS + math.ceil(words / _threads(config))


def slab_registers(kernel: Kernel, spec: CallSpec, config: KernelConfig, chunks: int) -> int:
    """The same of a kernel that has a tile's whole slab at once, as so many chunks.

    In "forward" those are logits and the values that wait for them; in "dquery", with the blocks of
    a single chunk, sums for the gradient of the bias and the table. float32 products, which are not
    done by tensor cores, have their operands in registers too.
    """
    rows, columns = math.prod(config.tile), math.prod(config.chunk)
    if kernel == "forward":
        words = (chunks - 1) * rows * columns
        halves = chunks * columns * padded_head_dim(spec.value_dim)
    else:
        words = halves = chunks * rows * columns
    words += halves * _bytes(spec) / 4
    total = registers(kernel, spec, config) + math.ceil(words / _threads(config))
    return total * (2 if spec.dtype == "float32" else 1)


def shared_memory(kernel: Kernel, spec: CallSpec, config: KernelConfig) -> int:
    """Bytes of shared memory of a block of threads, at most."""
    needs = _NEEDS[kernel]
    rows, columns = math.prod(config.tile), math.prod(config.chunk)
    numbers = rows * _width(needs.rows, spec)
    loaded = _width(needs.columns, spec)
    # Twice, what weights and their gradients are multiplied with.
    if multiplies_by_thirds(kernel, spec):
        loaded += {"dquery": _width((1, 0), spec), "dkeyvalue": loaded}.get(kernel, 0)
    numbers += config.num_stages * columns * loaded
    table = spec.has_bias and kernel in _TAKE_A_TABLE
    return numbers * _bytes(spec) + table * (config.num_stages - 1) * rows * columns * 4


def fits(
    kernel: Kernel, spec: CallSpec, config: KernelConfig, compute_capability: str | None
) -> bool:
    """Whether a kernel may fit a device, without spilling, and keeps its threads busy.

    Args:
      kernel: which kernel.
      spec: what it runs on.
      config: its settings.
      compute_capability: of the device, such as "9.0"; unknown ones are taken for the smallest.
    """
    threads = _threads(config)
    shared = _SHARED_KIB.get(compute_capability or "", _LEAST_SHARED_KIB) * 1024
    most = min(_REGISTERS_OF_THREAD, _REGISTERS_OF_BLOCK // threads)
    return (
        registers(kernel, spec, config) <= most
        and shared_memory(kernel, spec, config) <= shared
        and math.prod(config.tile) * math.prod(config.chunk) >= _ENTRIES_OF_THREAD * threads
    )


def _threads(config: KernelConfig) -> int:
    return 32 * config.num_warps


def _width(units: tuple[int, int], spec: CallSpec) -> int:
    padded = map(padded_head_dim, (spec.head_dim, spec.value_dim))
    return sum(unit * size for unit, size in zip(units, padded, strict=True))


def _bytes(spec: CallSpec) -> int:
    return 4 if spec.dtype == "float32" else 2
