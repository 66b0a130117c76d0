"""RoIAlign: the part of a feature pyramid that lies in a box, resampled to a small grid.

Each bin of the grid is the mean of bilinear samples. The mean is linear in the map and separates
into rows and columns, so a region is ``rows @ map @ columns^T`` with two small matrices of weights
(`bin_weights`). They are 0 outside of the box, hence of a map only the tiles that a box touches are
read: the maps are cut into tiles once, and regions go over their tiles, those with about as many
tiles side by side. The gradient goes the other way, tiles over their regions. So both add up in an
order that is always the same, nothing is scattered, and any box is exact, however long.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.checks import accumulation_dtype, axis_ints

# Side of a tile of a map, and how many regions or tiles are worked on side by side.
_TILE, _LANES = 8, 32


def roi_levels(
    boxes: Float[Array, "*N 4"], num_levels: int, *, finest_scale: int = 56
) -> Int[Array, "*N"]:
    """The level of the pyramid that a box is read from.

    Level 0 takes boxes of less than twice ``finest_scale`` pixels (by the square root of the area),
    level 1 of less than four times, and so on (Lin et al., 2017).
    """
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    size = jnp.sqrt(sides[..., 0] * sides[..., 1])
    level = jnp.floor(jnp.log2(size / finest_scale + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


def bin_weights(
    start: Float[Array, "*N"],
    length: Float[Array, "*N"],
    limit: Int[Array, "*N"],
    *,
    bins: int,
    positions: int,
    sampling_ratio: int = 0,
) -> Float[Array, "*N bins positions"]:
    """Weights of the positions of an axis in each bin of an interval.

    A bin averages samples that are spread evenly over it, each interpolated linearly between two
    positions. A sample up to one position beyond the axis counts as at its end; one farther out
    counts as 0.

    Args:
      start: where the interval begins, in positions; position 0 is at 0.
      length: of the interval; one of length 0 has weights 0.
      limit: number of positions that the axis really has.
      bins: equal parts of the interval.
      positions: size of the result; at least ``limit``.
      sampling_ratio: samples of a bin; 0 is as many as the bin has positions, rounded up.
    """
    start, length, limit = (x[..., None, None] for x in (start, length, limit))
    width = _divide(length, bins)
    if sampling_ratio:
        samples = jnp.full_like(length, sampling_ratio)
    else:
        samples = jnp.maximum(jnp.ceil(width), 0)
    leading = tuple(range(start.ndim - 2))
    index = jnp.expand_dims(jnp.arange(positions, dtype=start.dtype), (*leading, -2))
    edges = start + jnp.expand_dims(jnp.arange(bins, dtype=start.dtype), (*leading, -1)) * width
    divisor = jnp.maximum(samples, 1)
    last = (limit - 1).astype(start.dtype)

    def add(i: Array, total: Array) -> Array:
        i = i.astype(start.dtype)
        at = edges + (i + 0.5) * width / divisor
        is_near = (i < samples) & (at >= -1) & (at <= last + 1)
        weight = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, last) - index), 0)
        return total + jnp.where(is_near, weight, 0)

    most = jnp.max(samples, initial=0).astype(jnp.int32)
    shape = jnp.broadcast_shapes(edges.shape, index.shape)
    return jax.lax.fori_loop(0, most, add, jnp.zeros(shape, start.dtype)) / divisor


def _divide(x: Array, divisor: int) -> Array:
    """``x / divisor``, correctly rounded, so that 21 / 7 has a ceiling of 3 and not of 4.

    XLA multiplies by the reciprocal of a divisor that it knows. It does not know this one.
    """
    return x / jnp.where(jnp.isnan(x), x, jnp.asarray(divisor, x.dtype))


class _Grid(NamedTuple):
    """How a pyramid is cut into tiles: sizes of the maps and of their grids, level by level."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def rows(self) -> np.ndarray:
        return -(-np.asarray(self.heights, np.int32) // _TILE)

    @property
    def columns(self) -> np.ndarray:
        return -(-np.asarray(self.widths, np.int32) // _TILE)

    @property
    def first(self) -> np.ndarray:
        """Number of the first tile of each level."""
        counts = self.rows * self.columns
        return (np.cumsum(counts) - counts).astype(np.int32)

    @property
    def tiles(self) -> np.ndarray:
        """Level, row and column of each tile, ``[tiles, 3]``."""
        return np.concatenate(
            [
                np.stack([np.full(r * c, level), *divmod(np.arange(r * c), c)], axis=1)
                for level, (r, c) in enumerate(zip(self.rows, self.columns, strict=True))
            ]
        ).astype(np.int32)


class _Regions(NamedTuple):
    """Where the regions of a batch lie on their maps; arrays ``[B, R, ...]``.

    Attributes:
      levels: of the pyramid.
      first: row and column of the first tile.
      counts: rows and columns of tiles that a region touches, 0 for one that does not count.
      rows: weights of the map's rows, cut into tiles: ``[B, R, tiles, bins, _TILE]``.
      columns: likewise of its columns.
    """

    levels: Array
    first: Array
    counts: Array
    rows: Array
    columns: Array


def roi_align(
    pyramid: Sequence[Float[Array, "B _H _W C"]],
    boxes: Float[Array, "B R 4"],
    *,
    strides: Sequence[int],
    output_size: int | Sequence[int],
    levels: Int[Array, "B R"] | None = None,
    valid: Bool[Array, "B R"] | None = None,
    sampling_ratio: int = 0,
) -> Float[Array, "B R P Q C"]:
    """Read each box from its level of the pyramid, resampled to a small grid.

    There is no gradient to the boxes, and none beyond the first: derivatives are reverse mode.

    Args:
      pyramid: maps of a batch of images.
      boxes: in pixels of the images. Pixel ``i`` of the image covers ``[i, i + 1)``. What lies more
        than one position beyond the map counts as 0. A box without area gives 0, unless
        ``sampling_ratio`` says that it has samples; one whose corners are out of order gives 0.
      strides: pixels between two positions, of each map.
      output_size: height and width of the grid, or both at once.
      levels: index of the map for each box; None is by `roi_levels`.
      valid: boxes to look at, None is all. The others cost nothing and give 0.
      sampling_ratio: samples of a bin along each axis; 0 is as many as the bin has positions,
        rounded up, as published.

    Returns:
      The grids, computed in float32 (float64 for a float64 pyramid), in the dtype of the pyramid.

    Raises:
      ValueError: another number of strides than of maps, or sizes that are not positive.
    """
    if len(strides) != len(pyramid):
        raise ValueError(f"strides must hold one for each map; got {len(strides)}, {len(pyramid)}")
    bins = axis_ints("output_size", output_size, 2)
    boxes = jax.lax.stop_gradient(boxes)
    if levels is None:
        levels = roi_levels(boxes, len(pyramid))
    if valid is None:
        valid = jnp.ones(boxes.shape[:2], bool)
    grid = _Grid(
        tuple(x.shape[1] for x in pyramid), tuple(x.shape[2] for x in pyramid), tuple(strides)
    )
    if boxes.shape[1] == 0:
        return jnp.zeros((boxes.shape[0], 0, *bins, pyramid[0].shape[-1]), pyramid[0].dtype)
    regions = _locate(boxes, levels, valid, grid, bins, sampling_ratio)
    return _align(grid, pyramid[0].dtype.name, _cut(pyramid), regions)


def _locate(
    boxes: Array,
    levels: Array,
    valid: Array,
    grid: _Grid,
    bins: tuple[int, ...],
    sampling_ratio: int,
) -> _Regions:
    stride = jnp.asarray(grid.strides, boxes.dtype)[levels]
    firsts, counts, weights = [], [], []
    for axis, sizes in enumerate((grid.heights, grid.widths)):
        low, high = boxes[..., 1 - axis], boxes[..., 3 - axis]
        limit = jnp.asarray(sizes, jnp.int32)[levels]
        start, length = low / stride - 0.5, (high - low) / stride
        tiles = -(-max(sizes) // _TILE)
        weight = bin_weights(
            start,
            length,
            limit,
            bins=bins[axis],
            positions=tiles * _TILE,
            sampling_ratio=sampling_ratio,
        )
        shape = (*weight.shape[:-1], tiles, _TILE)
        weights.append(jnp.swapaxes(weight.reshape(shape), -2, -3))
        last = (limit - 1).astype(boxes.dtype)
        # A sample reads its own position, rounded down, and the next.
        begin = jnp.floor(jnp.clip(start, 0, last)).astype(jnp.int32) // _TILE
        end = jnp.minimum(jnp.clip(start + length, 0, last).astype(jnp.int32) + 1, limit - 1)
        firsts.append(begin)
        counts.append(end // _TILE - begin + 1)
    valid = valid & jnp.all(boxes[..., 2:] >= boxes[..., :2], axis=-1)
    counts = jnp.where(valid[..., None], jnp.stack(counts, axis=-1), 0)
    return _Regions(levels, jnp.stack(firsts, axis=-1), counts, *weights)


def _cut(pyramid: Sequence[Array]) -> Array:
    """All tiles of all maps, ``[B, tiles, _TILE, _TILE, C]``, zero padded."""
    levels = []
    for x in pyramid:
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, -height % _TILE), (0, -width % _TILE), (0, 0)))
        x = x.reshape(batch, x.shape[1] // _TILE, _TILE, x.shape[2] // _TILE, _TILE, channels)
        levels.append(jnp.swapaxes(x, 2, 3).reshape(batch, -1, _TILE, _TILE, channels))
    return jnp.concatenate(levels, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _align(grid: _Grid, dtype: str, tiles: Array, regions: _Regions) -> Array:
    """Grids of all regions from the tiles of the pyramid: regions go over their tiles."""
    total = jnp.prod(regions.counts, axis=-1, dtype=jnp.int32)
    order, lanes = _side_by_side(total)
    columns = jnp.asarray(grid.columns)
    first = jnp.asarray(grid.first)

    def lane(chosen: Array) -> Array:
        region = _take(regions, chosen)
        amount = jnp.prod(region.counts, axis=-1, dtype=jnp.int32)

        def add(i: Array, grids: Array) -> Array:
            step = jnp.minimum(i, jnp.maximum(amount - 1, 0))
            width = jnp.maximum(region.counts[..., 1], 1)
            row = region.first[..., 0] + step // width
            column = region.first[..., 1] + step % width
            number = first[region.levels] + row * columns[region.levels] + column
            down, across = _tile_weights(region, row, column, i < amount)
            rows = _along_rows("blpt,bltxc->blpxc", down, _take(tiles, number))
            return grids + _along_columns(across, rows)

        size = (regions.rows.shape[-2], regions.columns.shape[-2], tiles.shape[-1])
        start = jnp.zeros((*chosen.shape, *size), accumulation_dtype(tiles.dtype))
        return jax.lax.fori_loop(0, jnp.max(amount), add, start).astype(dtype)

    return _in_lanes(lane, order, lanes)


def _align_forward(grid: _Grid, dtype: str, tiles: Array, regions: _Regions):
    return _align(grid, dtype, tiles, regions), (tiles, regions)


def _align_backward(grid: _Grid, dtype: str, saved: tuple[Array, _Regions], gradient: Array):
    """Gradient of the tiles: tiles go over the regions that touch them."""
    tiles, regions = saved
    place = jnp.asarray(grid.tiles)
    touches = _touches(regions, place)
    order, lanes = _side_by_side(jnp.sum(touches(jnp.arange(len(place))[None]), axis=-1))

    def lane(chosen: Array) -> Array:
        touched = touches(chosen)
        amount = jnp.sum(touched, axis=-1, dtype=jnp.int32)
        # The regions that touch each tile, in the order of their indices.
        which = jnp.argsort(~touched, axis=-1, stable=True).astype(jnp.int32)
        row, column = place[chosen, 1], place[chosen, 2]

        def add(i: Array, total: Array) -> Array:
            number = jax.lax.dynamic_index_in_dim(which, i, axis=-1, keepdims=False)
            region = _take(regions, number)
            down, across = _tile_weights(region, row, column, i < amount)
            rows = _along_rows("blpt,blpqc->bltqc", down, _take(gradient, number))
            return total + _along_columns(jnp.swapaxes(across, -1, -2), rows)

        shape = (*chosen.shape, *tiles.shape[2:])
        start = jnp.zeros(shape, accumulation_dtype(tiles.dtype))
        return jax.lax.fori_loop(0, jnp.max(amount), add, start).astype(tiles.dtype)

    return _in_lanes(lane, order, lanes), None


_align.defvjp(_align_forward, _align_backward)


def _touches(regions: _Regions, place: Array):
    """A function from numbers of tiles ``[B, T]`` to which regions touch them, ``[B, T, R]``.

    The numbers may be ``[1, T]``, the same for all images.
    """

    def touches(numbers: Array) -> Array:
        level, at = place[numbers, 0], place[numbers, 1:]
        offset = at[:, :, None, :] - regions.first[:, None, :, :]
        inside = (offset >= 0) & (offset < regions.counts[:, None, :, :])
        return jnp.all(inside, axis=-1) & (level[:, :, None] == regions.levels[:, None, :])

    return touches


def _side_by_side(amounts: Array) -> tuple[Array, int]:
    """Order of work by amount, most first, and how many are done side by side.

    Those that are done side by side take as long as the longest of them.
    """
    return jnp.argsort(-amounts, axis=-1, stable=True).astype(jnp.int32), min(
        _LANES, amounts.shape[-1]
    )


def _in_lanes(lane, order: Array, lanes: int) -> Array:
    """Results of ``lane`` for all numbers of ``order``, ``lanes`` at a time, in number order."""
    batch, total = order.shape
    # What fills the last lanes is computed once more, and dropped.
    filled = jnp.pad(order, ((0, 0), (0, -total % lanes)), mode="edge")
    results = jax.lax.map(lane, jnp.moveaxis(filled.reshape(batch, -1, lanes), 1, 0))
    results = jnp.moveaxis(results, 0, 1).reshape(batch, -1, *results.shape[3:])
    return _take(results, jnp.argsort(order, axis=-1).astype(jnp.int32))


def _tile_weights(
    region: _Regions, row: Array, column: Array, counts: Array
) -> tuple[Array, Array]:
    """Weights of a tile's rows and of its columns in the bins of a region; 0 if it does not count.

    Both are ``[B, L, bins, _TILE]``.
    """
    down, across = _take_each(region.rows, row), _take_each(region.columns, column)
    return jnp.where(counts[..., None, None], down, 0), across


def _take(rows, numbers: Array):
    """``rows[b, numbers[b]]`` of every array of a tree."""
    return jax.tree.map(lambda x: jax.vmap(lambda x, i: x[i])(x, numbers), rows)


def _take_each(rows: Array, numbers: Array) -> Array:
    """``rows[b, l, numbers[b, l]]``."""
    return jax.vmap(jax.vmap(lambda x, i: x[i]))(rows, numbers)


def _along_rows(subscripts: str, weights: Array, values: Array) -> Array:
    """A product in full precision; weights are in that of the boxes."""
    exact = accumulation_dtype(values.dtype)
    return jnp.einsum(
        subscripts,
        weights.astype(exact),
        values.astype(exact),
        precision=jax.lax.Precision.HIGHEST,
    )


def _along_columns(weights: Array, values: Array) -> Array:
    """``weights[b, l, q, x] * values[b, l, p, x, c]``, summed over ``x``, in the order p, q, c.

    There are few ``x``, and channels lie side by side, so this is quicker than many small products:
    on a CPU by a factor of 2 to 3.
    """
    terms = (
        weights.astype(values.dtype)[:, :, None, :, x, None] * values[:, :, :, None, x, :]
        for x in range(weights.shape[-1])
    )
    return functools.reduce(operator.add, terms)
