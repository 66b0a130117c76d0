"""What a kernel is compiled with, by rule of thumb: sizes of its blocks and of its ring."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from natjax.kernels.plan.blocks import AxisBlocks, Blocks, axis_blocks
from natjax.kernels.plan.reach import num_blocks, skipping_pays
from natjax.kernels.spec import PRODUCTS, CallSpec, Kernel, rows_of

# Rows that one warpgroup multiplies, and rows of shared memory that are swizzled together.
GROUP_ROWS = 64
SWIZZLED_ROWS = 8
# Kernels of the unfused ops, for which one warpgroup multiplies.
UNFUSED: tuple[Kernel, ...] = ("qk", "av", "av_transposed")
# Kernels that can work on one image after the other.
STAYING: tuple[Kernel, ...] = ("forward", "dquery")
_MOST_IMAGES = 64
# How many images a block of threads works on whose table takes at most so many bytes, with which
# there is room for two such blocks on a multiprocessor.
_STAYS, _LARGEST_STORED = 8, 64 * 1024
# Up to this head size, a multiplying warpgroup copies for itself, and there is room for two on a
# multiprocessor; so do the gradients of keys and values with any. The others have so much in shared
# memory with wider heads that there is room for one, and another copies for it.
_COPIES_ITSELF = 64
# Up to this head size, registers and shared memory have room for logits of whole slabs of NAT's
# windows, and two blocks of threads on a multiprocessor.
_SLAB_WIDTH, _SLAB_COLUMNS = 32, 256
# From this many keys a window on, two warpgroups share what is copied.
_LARGE_WINDOW = 512
# Clocks that a warpgroup takes of a multiprocessor for a chunk, by the units that limit kernels:
# instructions for a chunk and for each of its columns, as the forward kernels for images of 256x256
# have them that were compiled for an H100 with 64 and with 128 columns; and tensor cores, for each
# column, channel and product.
_CHUNK_ISSUE, _COLUMN_ISSUE = 225, 5
_CHANNEL_PRODUCT = 1 / 32
# And for each column that is copied: so little that it decides between what else costs the same.
_COLUMN_COPY = 1 / 64


@dataclasses.dataclass(frozen=True, slots=True)
class KernelConfig:
    """Settings of one kernel.

    Attributes:
      tile: rows of a block along each token axis, powers of two, 64 or 128 in all, and a multiple
        of 8 along the last axis.
      chunk: columns of a block along each token axis, powers of two, 32 to 256 in all, and a
        multiple of 8 along the last axis.
      num_stages: chunks in the ring, from 1 to 8.
      boxes: whether lines of tokens that follow one another are one copy; otherwise, and where
        kernels are interpreted, each is one.
      images: that a block of threads works on, one after the other, where there is a table of what
        is added to logits, whose blocks it then keeps in shared memory: 1 to 64; fewer where there
        would be too few blocks of threads.
      copies_apart: whether a warpgroup of its own copies chunks, as it does in any case where two
        multiply. It has as many registers as one that multiplies, so there is room for fewer blocks
        of threads on a multiprocessor.

    Raises:
      ValueError: a value breaks its rule.
    """

    tile: tuple[int, ...]
    chunk: tuple[int, ...]
    num_stages: int = 2
    boxes: bool = True
    images: int = 1
    copies_apart: bool = False
    # Chunks are copied as boxes, none of which may end outside the array.
    whole_chunks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the rules."""
        for name, sizes in (("tile", (64, 128)), ("chunk", (32, 64, 128, 256))):
            sides = getattr(self, name)
            good = isinstance(sides, tuple) and 1 <= len(sides) <= 3
            good = good and all(map(_is_power_of_two, sides)) and math.prod(sides) in sizes
            if not good or sides[-1] % SWIZZLED_ROWS:
                raise ValueError(
                    f"{name} must have 1 to 3 sides, powers of two whose product is one of "
                    f"{sizes}, the last at least {SWIZZLED_ROWS}; got {sides!r}"
                )
        if len(self.tile) != len(self.chunk):
            raise ValueError(
                f"tile and chunk must have one side an axis each; got {self.tile} and {self.chunk}"
            )
        if type(self.num_stages) is not int or not 1 <= self.num_stages <= 8:
            raise ValueError(f"num_stages must be from 1 to 8; got {self.num_stages!r}")
        if type(self.images) is not int or not 1 <= self.images <= _MOST_IMAGES:
            raise ValueError(f"images must be from 1 to {_MOST_IMAGES}; got {self.images!r}")
        for name in ("boxes", "copies_apart"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")

    @property
    def warpgroups(self) -> int:
        """Warpgroups that multiply."""
        return math.prod(self.tile) // GROUP_ROWS

    @property
    def copying(self) -> int:
        """Warpgroups that copy and do nothing else."""
        return int(self.copies_apart or self.warpgroups == 2)

    @property
    def num_warps(self) -> int:
        """Warps in all."""
        return 4 * (self.warpgroups + self.copying)

    def sums_bias(self, spec: CallSpec) -> bool:
        """False: the gradient of the bias has a kernel of its own."""
        del spec
        return False

    @classmethod
    def suggest(cls, kernel: Kernel, spec: CallSpec) -> KernelConfig:
        """Settings by rule of thumb: the least work in blocks that fit a warpgroup's registers.

        Small windows have tiles of 64 rows, which compute less that is not seen; large ones of 128,
        so that what is copied serves more rows.
        """
        return _suggest(kernel, spec)


def _is_power_of_two(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0 and x & (x - 1) == 0


@functools.lru_cache(256)
def _suggest(kernel: Kernel, spec: CallSpec) -> KernelConfig:
    axes = len(spec.neighborhood.axes)
    is_large = spec.neighborhood.num_neighbors >= _LARGE_WINDOW
    # Two warpgroups have fewer registers a thread than one, too few for two sums of wide heads.
    shares = is_large and (kernel != "dkeyvalue" or spec.head_dim <= 64)
    rows = 128 if shares and kernel not in UNFUSED else 64
    choices = itertools.product(boxes(axes, rows), _chunks(kernel, spec))
    tile, chunk = min(choices, key=lambda choice: cost(kernel, spec, *choice))
    apart = spec.head_dim > _COPIES_ITSELF and kernel not in (*UNFUSED, "dkeyvalue")
    stages = 1 if math.prod(chunk) == _SLAB_COLUMNS else 2
    return with_images(kernel, spec, KernelConfig(tile, chunk, stages, copies_apart=apart))


def _chunks(kernel: Kernel, spec: CallSpec) -> list[tuple[int, ...]]:
    """Chunks to choose from.

    With more columns, fewer blocks of threads fit a multiprocessor; and gradients have two blocks
    in registers.
    """
    windows = spec.neighborhood.axes
    chunks = boxes(len(windows), 64)
    if kernel == "forward" and spec.neighborhood.num_neighbors >= _LARGE_WINDOW:
        return chunks + boxes(len(windows), 128)
    if kernel == "forward" and spec.head_dim <= _SLAB_WIDTH:
        lengths = [window.max_group_length for window in windows]
        slabs = boxes(len(windows), _SLAB_COLUMNS)
        chunks += [x for x in slabs if all(n <= m for n, m in zip(x, lengths, strict=True))]
    return chunks


def boxes(axes: int, size: int) -> list[tuple[int, ...]]:
    """Boxes of so many positions, whose sides are powers of two, the last not less than 8."""
    sides = [2**i for i in range(size.bit_length())]
    options = itertools.product(sides, repeat=axes)
    return [box for box in options if math.prod(box) == size and box[-1] >= SWIZZLED_ROWS]


def cost(kernel: Kernel, spec: CallSpec, tile: Sequence[int], chunk: Sequence[int]) -> float:
    """Clocks of a multiprocessor for a head of an image, all tiles; an estimate.

    Each of two warpgroups leaves out the chunks that none of its own rows meets.
    """
    blocks = Blocks(tuple(_axes(kernel, spec, tile, chunk)))
    copied, computed = blocks_walked(kernel, blocks)
    columns = math.prod(chunk)
    products = PRODUCTS[kernel] * spec.head_dim * columns * _CHANNEL_PRODUCT
    clocks = max(_CHUNK_ISSUE + columns * _COLUMN_ISSUE, products)
    return computed * clocks + copied * columns * _COLUMN_COPY


def blocks_walked(kernel: Kernel, blocks: Blocks) -> tuple[int, int]:
    """Chunks that are copied for all tiles of an image, and those that warpgroups compute."""
    pieces = pieces_of(blocks)
    if skips_chunks(kernel, blocks):
        return num_blocks(blocks), num_blocks(blocks, pieces)
    count = blocks.num_tiles * blocks.num_chunks
    return count, count * math.prod(pieces)


def skips_chunks(kernel: Kernel, blocks: Blocks) -> bool:
    """Whether tiles leave out the chunks of their slab that they do not meet.

    The gradient of the bias is summed over whole slabs.
    """
    return kernel != "dbias" and (blocks.num_rows > GROUP_ROWS or skipping_pays(blocks))


def pieces_of(blocks: Blocks) -> tuple[int, ...]:
    """The pieces along each axis that tiles are cut into, one for each warpgroup."""
    sides = [axis.tile for axis in blocks.axes]
    split = next((axis for axis, side in enumerate(sides) if side > 1), 0)
    pieces = [1] * len(sides)
    pieces[split] = blocks.num_rows // GROUP_ROWS
    return tuple(pieces)


def with_images(kernel: Kernel, spec: CallSpec, config: KernelConfig) -> KernelConfig:
    """The same blocks, on several images where the blocks of a tile's table can stay."""
    axes = _axes(kernel, spec, config.tile, config.chunk)
    chunks = math.prod(axis.num_chunks for axis in axes)
    stored = 4 * math.prod(config.tile) * math.prod(config.chunk) * chunks
    stays = kernel in STAYING and stored <= _LARGEST_STORED
    return dataclasses.replace(config, images=_STAYS if stays else 1)


def _axes(
    kernel: Kernel, spec: CallSpec, tile: Sequence[int], chunk: Sequence[int]
) -> list[AxisBlocks]:
    sides = zip(spec.neighborhood.axes, tile, chunk, strict=True)
    return [axis_blocks(window, rows_of(kernel), t, c, True) for window, t, c in sides]
