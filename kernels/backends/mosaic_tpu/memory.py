"""What fits the memory of a core, and how much of it a program of a kernel works on at once."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp

from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES, Layout, round_up
from natjax.kernels.backends.mosaic_tpu.program import Steps
from natjax.kernels.plan.blocks import Rows
from natjax.kernels.plan.pattern import table_entries
from natjax.kernels.spec import CallSpec

# Vector memory that a kernel may take, and what of it is planned for: every TPU since v5 has 64 MiB
# or more, and the compiler wants some for itself.
VMEM_LIMIT = 60 * 2**20
_BUDGET = 52 * 2**20
# A program's share of the batch: images of a few tiles are too little work for one.
_BLOCK_BYTES = 2**19
# The same of window slots, which take more than maps of the same images.
_SLOT_BLOCK_BYTES = 2**21
# Tiles side by side in the fused backward kernel, and what their logits take at most, in float32.
# Other kernels keep less of each tile, and have twice as many.
TILES = 8
_LOGIT_BYTES = 2**20
SMALLEST_HEAD = 16
# Maps that are arguments or results of the backward kernels, which take more than the others.
_OF_FUSED: dict[Rows, int] = {"queries": 3, "keys": 4}
_OF_UNFUSED: dict[Rows, int] = {"queries": 2, "keys": 2}


def padded_head_dim(spec: CallSpec) -> int:
    """Channels of a head in a kernel, of queries, keys and values alike: a power of two from 16."""
    return max(SMALLEST_HEAD, 1 << (max(spec.head_dim, spec.value_dim) - 1).bit_length())


@functools.lru_cache(256)
def layout_of(spec: CallSpec, heads: int, *, is_unfused: bool = False) -> Layout:
    """The layout of a call's maps, in as few strips as fit the memory of a core.

    Args:
      spec: what the kernels are specialised for.
      heads: query heads.
      is_unfused: whether window slots have to fit as well.

    Raises:
      ValueError: not even strips of one tile fit.
    """
    itemsize = jnp.dtype(spec.dtype).itemsize
    # The axis in the sublanes is never cut into strips.
    across = math.prod(spec.neighborhood.key_shape[1:] or spec.neighborhood.key_shape)
    # What is far too large is not planned at all.
    if 2 * 7 * across * LANES * itemsize <= _BUDGET:
        whole = Layout.of(spec.neighborhood, heads, padded_head_dim(spec))
        first = whole.blocks.axes[0]
        for strips in range(1, first.per_group + 1):
            rows = -(-first.per_group // strips) * first.tile
            layout = whole if strips == 1 else dataclasses.replace(whole, rows=rows)
            of_maps = _OF_UNFUSED if is_unfused else _OF_FUSED
            slots = _slot_bytes(layout, itemsize) if is_unfused else 0
            if _vmem_bytes(layout, itemsize, of_maps) + slots <= _BUDGET:
                return layout
    raise ValueError("a tile and its slab across the map do not fit the memory of a core")


def fits(spec: CallSpec, heads: int, *, is_unfused: bool = False) -> bool:
    """Whether there is a layout."""
    try:
        layout_of(spec, heads, is_unfused=is_unfused)
    except ValueError:
        return False
    return True


def steps_of(
    layout: Layout, batch: int, itemsize: int, slots: int = 0, *, is_backward: bool = False
) -> Steps:
    """How much a program does at once: enough tiles side by side, if need be of several images.

    Args:
      layout: of the maps.
      batch: images.
      itemsize: bytes of a number.
      slots: window slots of a query that are arguments or results.
      is_backward: whether it is the fused backward kernel.
    """
    share = 1 if is_backward else 2
    wanted = max(1, share * TILES // layout.tiles_of_group)
    logits = layout.keys * round_up(layout.logit_lanes, LANES) * 4
    tiles = max(1, share * min(TILES, _LOGIT_BYTES // logits))
    if layout.groups > 1 or layout.num_strips > 1:
        return Steps(1, _divisor(layout.groups, wanted), _even(layout, wanted, tiles))
    image = math.prod(layout.tiled) * round_up(layout.lanes, LANES) * itemsize
    most = _BLOCK_BYTES // image
    if slots:
        lanes = layout.heads * round_up(slots, LANES)
        most = min(most, _SLOT_BLOCK_BYTES // (math.prod(layout.tiled) * lanes * itemsize))
    images = _divisor(batch, max(1, most))
    maps = _divisor(images, wanted)
    return Steps(images, maps, _even(layout, maps, tiles))


def _even(layout: Layout, maps: int, most: int) -> int:
    """Tiles side by side: as many as may be, or some fewer if none are left over then."""
    total = maps * layout.tiles_of_group
    fewer = range(most, most // 2, -1)
    return next((n for n in fewer if total % n == 0), min(most, total))


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to a bound."""
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)


def block_of(layout: Layout, of: Rows) -> tuple[int, ...]:
    """Tokens along each axis of a block; without dilation, queries as far as tiles reach."""
    tokens = layout.tokens_of_strip(of)
    if layout.groups > 1:
        return tokens
    if of == "queries":
        return layout.tiled
    return *tokens[:-1], round_up(tokens[-1], SUBLANES)


def _vmem_bytes(layout: Layout, itemsize: int, maps: dict[Rows, int]) -> int:
    """What a kernel with so many maps takes; blocks are double.

    Half of the maps of keys are gradients, which are not rounded before those of strips are summed.
    """
    lanes = round_up(layout.lanes, LANES)
    of_keys = (itemsize + (itemsize if layout.num_strips == 1 else 4)) / 2
    sizes: dict[Rows, float] = {"queries": itemsize, "keys": of_keys}
    size = 4 * maps["keys"] * _positions(layout.copy)
    for of, n in maps.items():
        size += round(2 * n * sizes[of]) * _positions(block_of(layout, of))
    if layout.groups > 1:
        size += sum(4 * n * _raised(layout, of) for of, n in maps.items())
        size += 4 * maps["queries"] * _positions(layout.tiled)
    kinds = table_entries(layout.blocks) // (layout.queries * layout.keys)
    tables = 5 * kinds * layout.keys * round_up(layout.logit_lanes, LANES) * 4
    return size * lanes + tables + 4 * _LOGIT_BYTES


def _slot_bytes(layout: Layout, itemsize: int) -> int:
    """What window slots take: weights and their gradients, double; dilation groups of both, raised;
    and tiles side by side.
    """
    *leading, last = (axis.kernel_size for axis in layout.windows)
    slots = math.prod(leading) * last
    lanes = layout.heads * round_up(slots, LANES)
    size = 2 * 2 * _positions(block_of(layout, "queries")) * lanes * itemsize
    if layout.groups > 1:
        at_hand = max(1, 2 * TILES // layout.tiles_of_group) * _positions(layout.tiled)
        size += 2 * 4 * (_raised(layout, "queries") + at_hand) * lanes
    spread = math.prod(leading) * (2 * round_up(last, SUBLANES) + layout.columns.halo)
    dense = round_up(slots, SUBLANES) + SUBLANES
    return size + 2 * TILES * 2 * (spread + dense) * round_up(layout.logit_lanes, LANES) * 4


def _raised(layout: Layout, of: Rows) -> int:
    """Positions of an image whose dilation groups are all as long as the longest."""
    sizes = zip(layout.positions(of), layout.dilation, strict=True)
    return _positions(tuple(n * d for n, d in sizes))


def _positions(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes[:-1]) * round_up(sizes[-1], SUBLANES)
