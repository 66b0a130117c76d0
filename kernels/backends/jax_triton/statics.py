"""What a kernel is compiled for, as plain numbers that Triton's language takes for constants."""

from __future__ import annotations

import dataclasses
import itertools

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.triton_common.config import (
    multiplies_by_thirds,
    padded_head_dim,
    skips_chunks,
)
from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import AxisBlocks, axis_blocks
from natjax.kernels.spec import Kernel, KernelCall, rows_of


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """An axis of the token layout: the neighborhood along it, and its blocks.

    Attributes:
      length: tokens.
      kernel_size: window size.
      stride: queries that share a window.
      dilation: distance between neighboring keys.
      is_causal: whether keys after the query are hidden.
      per_group: tiles in a dilation group.
      num_tiles: tiles in all.
      tile: rows in a tile.
      chunk: columns in a chunk.
      num_chunks: chunks in a slab.
      offset: from the start of a tile to that of its slab, away from the borders.
      last: where the last slab starts.
      rows_exist: whether every row of every tile is a token.
      columns_exist: whether every column of every chunk is one.
    """

    length: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool
    per_group: int
    num_tiles: int
    tile: int
    chunk: int
    num_chunks: int
    offset: int
    last: int
    rows_exist: bool
    columns_exist: bool

    @classmethod
    def of(cls, blocks: AxisBlocks) -> Axis:
        """What kernels know of the blocks along an axis."""
        window = blocks.window
        divides = window.length % window.dilation == 0
        positions = window.max_group_length
        return cls(
            length=window.length,
            kernel_size=window.kernel_size,
            stride=window.stride,
            dilation=window.dilation,
            is_causal=window.is_causal,
            per_group=blocks.per_group,
            num_tiles=blocks.num_tiles,
            tile=blocks.tile,
            chunk=blocks.chunk,
            num_chunks=blocks.num_chunks,
            offset=blocks.offset,
            last=positions - blocks.halo,
            rows_exist=divides and positions % blocks.tile == 0,
            columns_exist=divides and blocks.num_chunks * blocks.chunk <= blocks.halo,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Statics:
    """What a kernel is compiled for.

    Attributes:
      t: the first of three axes; layouts of fewer have axes of one token in front.
      h: the second.
      w: the third.
      axes: how many there are in fact.
      tokens: of an image.
      tiles: of an image and head.
      rows: of a block.
      columns: of a block.
      chunks: of a slab.
      shifts: tokens from the first chunk of a slab to each.
      rows_exist: whether every row of every tile is a token.
      columns_exist: whether every column of every chunk is one.
      skips_chunks: whether programs look up which chunks of their slab their tile meets.
      keeps_loop: whether ptxas must not write out the rounds of a loop over all chunks.
      heads: of queries.
      kv_heads: of keys and values.
      groups: query heads for each key head.
      width: head size of queries and keys.
      value_width: head size of values.
      padded_width: the same as powers of two, 16 at least.
      padded_value_width: the same as powers of two, 16 at least.
      neighbors: window slots.
      scale: factor on the products of queries and keys.
      factor: the same where logits are in units of log2(e).
      has_table: whether what to add to the logits is in a table; otherwise masks are computed.
      kinds: of tiles, where there is a table.
      is_per_head: whether each head has a table.
      is_long: whether the entries of an image need 64-bit numbers.
      precision: of products of float32 numbers, as Triton names it.
      is_threefold: whether each such product is made of three.
      stages: chunks in flight; images, where a kernel loops over those.
      is_unrolled: whether all chunks of a slab are in registers at once.
      looks_for_nan: whether a program repeats its softmax with care where a key is nan.
      batch: images, where a kernel loops over them.
      splits: programs that share the images of the same tiles, where a kernel loops over them.
      images: how many of them a program has at most.
      shares: of the tiles, each of one kind, where a program has one.
    """

    t: Axis
    h: Axis
    w: Axis
    axes: int
    tokens: int
    tiles: int
    rows: int
    columns: int
    chunks: int
    shifts: tuple[int, ...]
    rows_exist: bool
    columns_exist: bool
    skips_chunks: bool
    keeps_loop: bool
    heads: int
    kv_heads: int
    groups: int
    width: int
    value_width: int
    padded_width: int
    padded_value_width: int
    neighbors: int
    scale: float
    factor: float
    has_table: bool
    kinds: int
    is_per_head: bool
    is_long: bool
    precision: str
    is_threefold: bool
    stages: int
    is_unrolled: bool
    looks_for_nan: bool
    batch: int = 1
    splits: int = 1
    images: int = 1
    shares: int = 1


def _shifts(t: Axis, h: Axis, w: Axis) -> tuple[int, ...]:
    """Tokens from the first chunk of a slab to each, row-major."""
    steps = (x.chunk * x.dilation for x in (t, h, w))
    tokens = (h.length * w.length, w.length, 1)
    along = [
        [i * step * token for i in range(axis.num_chunks)]
        for axis, step, token in zip((t, h, w), steps, tokens, strict=True)
    ]
    return tuple(map(sum, itertools.product(*along)))


# From which head size on ptxas, which then has all registers in use, spills in "dkeyvalue" where it
# writes out a loop of few rounds, on an A100 and Ada.
_SPILLS_WRITTEN_OUT = 128
_ONE_TOKEN = AxisWindow(length=1, kernel_size=1)


def statics_of(
    call: KernelCall,
    kernel: Kernel,
    *,
    heads: int,
    kv_heads: int,
    width: int,
    value_width: int,
    table: tuple[int, ...] | None = None,
    **loops: int,
) -> Statics:
    """What a kernel of a call is compiled for.

    Args:
      call: the call.
      kernel: its kernel.
      heads: of queries, those that this device has.
      kv_heads: of keys, likewise.
      width: head size of queries and keys.
      value_width: head size of values.
      table: shape of the table of what to add to the logits, if there is one.
      **loops: what `Statics` says of kernels that loop over images or tiles.
    """
    blocks = call.blocks(kernel)
    alone = axis_blocks(_ONE_TOKEN, rows_of(kernel), 1, 1)
    t, h, w = map(Axis.of, ((alone,) * (3 - len(blocks.axes)) + blocks.axes))
    skips = kernel != "dbias" and skips_chunks(blocks)
    return Statics(
        t=t,
        h=h,
        w=w,
        axes=len(blocks.axes),
        tokens=blocks.num_tokens,
        tiles=blocks.num_tiles,
        rows=blocks.num_rows,
        columns=blocks.num_columns,
        chunks=blocks.num_chunks,
        shifts=_shifts(t, h, w),
        rows_exist=t.rows_exist and h.rows_exist and w.rows_exist,
        columns_exist=t.columns_exist and h.columns_exist and w.columns_exist,
        skips_chunks=skips,
        keeps_loop=kernel == "dkeyvalue" and max(width, value_width) >= _SPILLS_WRITTEN_OUT,
        heads=heads,
        kv_heads=kv_heads,
        groups=max(1, heads // kv_heads),
        width=width,
        value_width=value_width,
        padded_width=padded_head_dim(width),
        padded_value_width=padded_head_dim(value_width),
        neighbors=call.spec.neighborhood.num_neighbors,
        scale=float(call.scale),
        factor=float(call.scale * LOG2_E),
        has_table=table is not None,
        kinds=table[1] if table else 0,
        is_per_head=table is not None and table[0] > 1,
        is_long=blocks.num_tokens * heads * max(width, value_width) >= 2**31,
        precision="tf32" if call.spec.products == "tf32" else "ieee",
        is_threefold=multiplies_by_thirds(kernel, call.spec),
        stages=call.config(kernel).num_stages,
        is_unrolled=not skips and call.config(kernel).holds_slab(kernel, call.spec),
        looks_for_nan=table is not None,
        **loops,
    )
