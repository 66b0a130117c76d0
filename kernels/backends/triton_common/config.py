"""What a kernel is compiled with, by rule of thumb: sizes of its blocks, warps and stages."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import Blocks, Rows, axis_blocks
from natjax.kernels.plan.reach import BY_COUNTING, axis_reach, skipping_pays
from natjax.kernels.spec import PRODUCTS, CallSpec, Kernel, rows_of

# The most rows or columns of a block: far more than any device has registers for.
_LARGEST_BLOCK = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig:
    """Settings of one kernel.

    Attributes:
      tile: rows of a block along each token axis, powers of two, 16 to 4096 in all.
      chunk: columns of a block along each token axis, powers of two, 16 to 4096 in all.
      num_warps: warps of 32 threads that work on a tile: 1, 2, 4, 8 or 16.
      num_stages: chunks in flight, from 1 to 8; more hide latency and take shared memory.

    Raises:
      ValueError: a value breaks its rule.
    """

    tile: tuple[int, ...]
    chunk: tuple[int, ...]
    num_warps: int = 4
    num_stages: int = 2
    # Then no chunk needs a mask for what it loads, and the last tiles of an axis meet as few chunks
    # as the first.
    whole_chunks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the rules."""
        for name in ("tile", "chunk"):
            sides = getattr(self, name)
            good = isinstance(sides, tuple) and 1 <= len(sides) <= 3
            good = good and all(map(_is_power_of_two, sides))
            if not good or not 16 <= math.prod(sides) <= _LARGEST_BLOCK:
                raise ValueError(
                    f"{name} must have 1 to 3 sides, powers of two whose product is from 16 to "
                    f"{_LARGEST_BLOCK}; got {sides!r}"
                )
        if len(self.tile) != len(self.chunk):
            raise ValueError(
                f"tile and chunk must have one side an axis each; got {self.tile} and {self.chunk}"
            )
        if not _is_power_of_two(self.num_warps) or self.num_warps > 16:
            raise ValueError(f"num_warps must be 1, 2, 4, 8 or 16; got {self.num_warps!r}")
        if type(self.num_stages) is not int or not 1 <= self.num_stages <= 8:
            raise ValueError(f"num_stages must be from 1 to 8; got {self.num_stages!r}")

    @classmethod
    def suggest(cls, kernel: Kernel, spec: CallSpec) -> KernelConfig:
        """Settings by rule of thumb: the least work, counted in logits and loads.

        Windows of few keys want small blocks, which compute less that is not seen; windows of many
        want the largest that fit (`budget`), so that what is loaded serves more rows.
        """
        return _suggest(kernel, spec)

    def sums_bias(self, spec: CallSpec) -> bool:
        """Whether "dquery" with these settings sums the gradient of the bias as well: never."""
        del spec
        return False


def padded_head_dim(size: int) -> int:
    """Head size inside a kernel: tensor cores take 16 and powers of two."""
    return max(16, 1 << (size - 1).bit_length())


def multiplies_by_thirds(kernel: Kernel, spec: CallSpec) -> bool:
    """Whether a kernel makes products of float32 numbers of three of TF32, for tensor cores.

    Where heads are wider, registers have no room for both halves of rows and sums. Then products
    are those of float32 itself, which are no less exact.
    """
    return spec.products == "tf32x3" and _width(spec) <= _WIDEST_BY_THIRDS.get(kernel, 128)


def _is_power_of_two(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0


# Work besides the entries of blocks, in the same unit; estimates, for want of measurements, whose
# place tables of tuned settings take: loading a row or column; for each row of a block, the
# reductions of a softmax and rescaling what is accumulated; and a multiply-add of float32, which no
# tensor core does.
_LOAD = 48
_REDUCE = 8
_RESCALE = 1 / 8
_MULTIPLY_ADD = 1 / 8
_BY_THIRDS = 1 / 24
# Entries of a block and its accumulators, of 2 bytes, from which on so many warps share them.
_EIGHT_WARPS = 64 * 256
_FOUR_WARPS = 32 * 96
# What a warp has of a block in float32: at least so many entries, four a thread, unless it would
# have more than so many sums, 64 a thread.
_ENTRIES_OF_WARP = 32 * 4
_SUMS_OF_WARP = 32 * 64
# For 16 rows of heads wider than 128: what has room for their sums, and repeats the least; 4 of the
# kernels that are not here.
_WARPS_OF_WIDE: dict[Kernel, int] = {"forward": 2, "dquery": 2, "dbias": 1}
# The widest heads whose products of float32 are made of three of TF32, where those are not of 128;
# and what a warp has of their width.
_WIDEST_BY_THIRDS: dict[Kernel, int] = {"dbias": 64}
_WIDTH_OF_WARP = 64


@functools.lru_cache(256)
def _suggest(kernel: Kernel, spec: CallSpec) -> KernelConfig:
    tiles, chunks = _boxes_of(spec, budget(kernel, spec))
    costs = _costs(kernel, spec, tiles, chunks)
    tile, chunk = np.unravel_index(np.argmin(costs), costs.shape)
    return _config(kernel, spec, tiles[tile], chunks[chunk])


def skips_chunks(blocks: Blocks) -> bool:
    """Whether kernels other than "dbias" skip the chunks of a slab that a tile does not meet.

    That one sums over whole slabs.
    """
    return skipping_pays(blocks, BY_COUNTING)


def cost(kernel: Kernel, spec: CallSpec, config: KernelConfig) -> float:
    """Work of a kernel in entries of blocks, for each token: the logits and what is loaded."""
    return float(_costs(kernel, spec, [config.tile], [config.chunk])[0, 0])


def _costs(
    kernel: Kernel,
    spec: CallSpec,
    tiles: Sequence[tuple[int, ...]],
    chunks: Sequence[tuple[int, ...]],
) -> Float[np.ndarray, "tiles chunks"]:
    """`cost` of each tile with each chunk; thousands, so all at once."""
    num_tiles, whole, met = _counts(kernel, spec, tiles, chunks)
    rows, columns = np.prod(tiles, axis=-1)[:, None], np.prod(chunks, axis=-1)
    skipping = np.inf if kernel == "dbias" else BY_COUNTING.cost(met, num_tiles, columns)
    walked = np.minimum(whole, skipping)
    overhead = _REDUCE + _RESCALE * _width(spec)
    of_entry = 1.0
    if multiplies_by_thirds(kernel, spec):
        of_entry += _BY_THIRDS * PRODUCTS[kernel] * _width(spec)
    elif spec.dtype == "float32":
        of_entry += _MULTIPLY_ADD * PRODUCTS[kernel] * _width(spec)
    of_block = rows * (columns * of_entry + overhead) + _LOAD * columns
    return (walked * of_block + num_tiles * _LOAD * rows) / spec.neighborhood.num_tokens


def _counts(
    kernel: Kernel,
    spec: CallSpec,
    tiles: Sequence[tuple[int, ...]],
    chunks: Sequence[tuple[int, ...]],
) -> Float[np.ndarray, "3 tiles chunks"]:
    """Tiles, blocks of whole slabs, and blocks that tiles meet, of each tile with each chunk."""
    counts = np.ones((3, len(tiles), len(chunks)))
    for axis, window in enumerate(spec.neighborhood.axes):
        tile_sides, tile_index = np.unique([x[axis] for x in tiles], return_inverse=True)
        chunk_sides, chunk_index = np.unique([x[axis] for x in chunks], return_inverse=True)
        along = np.array(
            [
                [_counts_along(window, rows_of(kernel), int(t), int(c)) for c in chunk_sides]
                for t in tile_sides
            ]
        )
        counts *= along[tile_index][:, chunk_index].transpose(2, 0, 1)
    return counts


def _counts_along(window: AxisWindow, rows: Rows, tile: int, chunk: int) -> tuple[int, int, int]:
    blocks = axis_blocks(window, rows, tile, chunk, KernelConfig.whole_chunks)
    whole = blocks.num_tiles * blocks.num_chunks
    return blocks.num_tiles, whole, int(axis_reach(blocks)[:, 1].sum())


def _width(spec: CallSpec) -> int:
    """The wider head size, as kernels see it."""
    return padded_head_dim(max(spec.head_dim, spec.value_dim))


def blocks_within(
    kernel: Kernel, spec: CallSpec, most: tuple[int, int] | None = None
) -> list[KernelConfig]:
    """Blocks to choose from, of up to ``most`` rows and columns (by default those of `budget`)."""
    tiles, chunks = _boxes_of(spec, most or budget(kernel, spec))
    return [_config(kernel, spec, tile, chunk) for tile, chunk in itertools.product(tiles, chunks)]


def _boxes_of(
    spec: CallSpec, most: tuple[int, int]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Tiles and chunks of up to ``most`` rows and columns."""
    windows = spec.neighborhood.axes
    reach = [min(w.max_group_length, w.kernel_size + 16) for w in windows]
    return _boxes([w.max_group_length for w in windows], most[0]), _boxes(reach, most[1])


def _config(
    kernel: Kernel, spec: CallSpec, tile: tuple[int, ...], chunk: tuple[int, ...]
) -> KernelConfig:
    return KernelConfig(
        tile,
        chunk,
        num_warps=warps(kernel, math.prod(tile), math.prod(chunk), spec),
        num_stages=stages(kernel, math.prod(tile), math.prod(chunk), spec),
    )


def budget(kernel: Kernel, spec: CallSpec) -> tuple[int, int]:
    """The most rows and columns of a block that registers and shared memory have room for.

    Fewer where heads are wide or entries long, and where a kernel keeps more than one row or block
    of results. What each choice takes of an A100, H100 and B200, where none spills, is in
    benchmarks/results/aot.md.
    """
    if multiplies_by_thirds(kernel, spec):
        if _width(spec) > _WIDTH_OF_WARP:
            return 16, 16
        return 64, 16 if kernel == "dkeyvalue" and _width(spec) > 32 else 32
    width = _width(spec) * (2 if spec.dtype == "float32" else 1)
    if width > 256:
        return 16, 16
    if width > 128:
        return (16, 16) if kernel == "dquery" else (32, 32)
    if kernel in ("forward", "dquery") and spec.dtype != "float32":
        return (128, 64) if kernel == "forward" or width <= 64 else (64, 64)
    return (64, 64) if width <= 64 else (64, 32)


def warps(kernel: Kernel, rows: int, columns: int, spec: CallSpec) -> int:
    """Warps that share a block: accumulators and a block of logits fit their registers.

    At most one for every 16 rows, unless heads are so wide that those have no room for their sums:
    further warps would repeat what the others do on tensor cores, which take 16 rows. Products of
    float32 are not done there; of those a thread should have several entries, or it loads as much
    as it multiplies.
    """
    if multiplies_by_thirds(kernel, spec):
        return max(1, _width(spec) // _WIDTH_OF_WARP) * max(1, rows // 16)
    entries = _entries(kernel, rows, columns, spec)
    if spec.dtype == "float32":
        accumulators = 2 if kernel == "dkeyvalue" else 1
        wanted = 8 if 2 * entries >= _EIGHT_WARPS else 4 if entries >= _FOUR_WARPS else 1
        summing = accumulators * rows * _width(spec) // _SUMS_OF_WARP
        return min(wanted, max(rows * columns // _ENTRIES_OF_WARP, summing))
    if _width(spec) > 128:
        return _WARPS_OF_WIDE.get(kernel, 4) * rows // 16
    if entries >= _EIGHT_WARPS:
        return min(8, rows // 16)
    wanted = 4 if entries >= _FOUR_WARPS else 2 if rows >= 32 else 1
    return min(wanted, rows // 16)


def stages(kernel: Kernel, rows: int, columns: int, spec: CallSpec) -> int:
    """Chunks in flight: two, or three where heads leave shared memory for them.

    That is for gradients of keys, whose chunks bring most along, and for "qk". With two, ptxas
    spills 4 or 8 bytes of either, with no more than 80 registers in use. And it is for blocks of
    which warps have as much as their registers hold: with a chunk more in flight ptxas finds room.
    """
    width = _width(spec)
    if spec.dtype == "float32" or width > 128:
        return 2
    narrow = kernel in ("dkeyvalue", "qk") and width <= 64
    full = rows == 64 and columns <= 32 and _entries(kernel, rows, columns, spec) >= _EIGHT_WARPS
    return 3 if narrow or full else 2


def _entries(kernel: Kernel, rows: int, columns: int, spec: CallSpec) -> int:
    """Of a block and its accumulators, in numbers of two bytes."""
    accumulators = 2 if kernel == "dkeyvalue" else 1
    return rows * (columns + 2 * accumulators * _width(spec))


def _boxes(lengths: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Boxes of 16 to ``most`` entries, powers of two, no side twice as long as it need be.

    The last side alone may be longer, so that there are boxes of 16 for any layout.
    """
    sides = [[1 << i for i in range(int(np.ceil(np.log2(n))) + 1)] for n in lengths]
    sides[-1] = [1 << i for i in range(max(len(sides[-1]), 5))]
    return [box for box in itertools.product(*sides) if 16 <= math.prod(box) <= most]
