"""The settings that are worth measuring on the present GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp

from natjax.kernels.backends.mosaic_gpu import config
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS, KernelConfig
from natjax.kernels.backends.mosaic_gpu.layout import Layout
from natjax.kernels.backends.mosaic_gpu.memory import bytes_of, memory_of
from natjax.kernels.backends.mosaic_gpu.program import Program, registers_of_thread
from natjax.kernels.spec import CallSpec, Kernel, blocks_of

_ROWS = (64, 128)
_COLUMNS = (32, 64, 128, 256)
_STAGES = (1, 2, 3, 4)
_IMAGES = (1, 2, 4, 8, 16)
# Bytes of shared memory that a block of threads may have on Hopper, and what Mosaic takes of them:
# its scratch memory for reductions, and barriers.
_SHARED, _SHARED_BESIDE = 227 * 1024, 4 * 1024
# Addresses, counters and what else a thread keeps.
_OTHER_REGISTERS = 32
# What a thread has in registers at once: sums of the width of a head, and blocks of float32.
_SUMS_AND_BLOCKS: dict[Kernel, tuple[int, int]] = {
    "forward": (1, 1),
    "dquery": (1, 2),
    "dkeyvalue": (2, 2),
    "dbias": (0, 3),
    # Places of the slots are as many as logits.
    "qk": (0, 2),
    "av": (1, 1),
    "av_transposed": (1, 1),
}


def candidates(kernel: Kernel, spec: CallSpec, limit: int) -> list[KernelConfig]:
    """The blocks of least estimated work that fit Hopper, after the suggested ones."""
    suggested = KernelConfig.suggest(kernel, spec)
    axes = len(spec.neighborhood.axes)
    rows = _ROWS[:1] if kernel in config.UNFUSED else _ROWS
    tiles = [x for n in rows for x in config.boxes(axes, n)]
    chunks = [x for n in _COLUMNS for x in config.boxes(axes, n)]
    options = (
        config.with_images(kernel, spec, dataclasses.replace(suggested, tile=tile, chunk=chunk))
        for tile, chunk in itertools.product(tiles, chunks)
    )
    fitting = [x for x in options if x != suggested and fits(kernel, spec, x)]
    ranked = sorted(fitting, key=lambda x: config.cost(kernel, spec, x.tile, x.chunk))
    return [suggested, *ranked[: limit - 1]]


def variants(kernel: Kernel, spec: CallSpec, start: KernelConfig) -> list[KernelConfig]:
    """The same blocks with other stages and images, or copied otherwise, least changed first."""

    def change(option: KernelConfig) -> float:
        images = abs(math.log2(option.images / start.images))
        how = (option.boxes != start.boxes) + (option.copies_apart != start.copies_apart)
        return abs(option.num_stages - start.num_stages) + images + how

    images = _IMAGES if kernel in config.STAYING else (1,)
    # Two that multiply have one that copies.
    apart = (True, False) if start.warpgroups == 1 else (start.copies_apart,)
    options = (
        dataclasses.replace(start, num_stages=n, boxes=boxes, images=count, copies_apart=by_itself)
        for n, boxes, count, by_itself in itertools.product(_STAGES, (True, False), images, apart)
    )
    return sorted((x for x in options if x != start and fits(kernel, spec, x)), key=change)


def fits(kernel: Kernel, spec: CallSpec, option: KernelConfig) -> bool:
    """Whether a block of threads has the shared memory, and its threads the registers."""
    sums, blocks = _SUMS_AND_BLOCKS[kernel]
    # A warpgroup of 128 threads has a block of 64 rows.
    entries = GROUP_ROWS / 128 * (sums * spec.head_dim + blocks * math.prod(option.chunk))
    registers = registers_of_thread(option.warpgroups)
    has_memory = shared_memory(kernel, spec, option) + _SHARED_BESIDE <= _SHARED
    return has_memory and entries + _OTHER_REGISTERS <= registers


def shared_memory(kernel: Kernel, spec: CallSpec, option: KernelConfig) -> int:
    """Bytes of shared memory of a block of threads, without what Mosaic itself needs."""
    return bytes_of(memory_of(kernel, _program(kernel, spec, option)))


def _program(kernel: Kernel, spec: CallSpec, option: KernelConfig) -> Program:
    """What a kernel would be compiled for, but for batch and heads, which take no memory."""
    return Program(
        layout=Layout.of(blocks_of(kernel, option, spec.neighborhood)),
        config=option,
        heads=1,
        kv_heads=1,
        width=spec.head_dim,
        dtype=jnp.dtype(spec.dtype),
        scale=1.0,
        batch=1,
        images=option.images,
        skips_chunks=False,
        interpret=False,
    )
