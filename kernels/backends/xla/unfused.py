"""The unfused ops of implementation "xla": one window slot at a time, for all queries."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.cross_scale import with_more_heads
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.frame import AxisFrame, axis_frame, cut_round, merge_groups
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.sharding.partitioning import align_varying


@with_more_heads
@functools.partial(jax.jit, static_argnames=("neighborhood", "scale"))
def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    key_mask: Bool[Array, "B *Y"] | None = None,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.backends.reference.qk`; one pass over the keys for each window slot."""
    logits = functools.partial(_qk, neighborhood=neighborhood, scale=scale)
    return on_device_parts(logits, (query, key, key_mask), rpb)


def _qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *Y M D"],
    key_mask: Bool[Array, "B *Y"] | None,
    rpb: Float[Array, "N *R"] | None,
    *,
    neighborhood: Neighborhood,
    scale: float,
) -> Float[Array, "B *X N K"]:
    dtype = accumulation_dtype(query.dtype)
    heads = key.shape[-2]
    grouped = (*query.shape[:-2], heads, query.shape[-2] // heads, query.shape[-1])
    q = query.reshape(grouped).astype(dtype)
    bias = None if rpb is None else rpb.astype(dtype)

    def logits(slot: Array) -> Float[Array, "B *X N"]:
        slot = _apart(slot)
        k = _slot_keys(key, neighborhood, slot)[..., None, :]
        z = scale * jnp.sum(q * k.astype(dtype), axis=-1)
        z = z.reshape(query.shape[:-1])
        if bias is not None:
            z += _slot_bias(bias, neighborhood, slot)[None]
        seen = _slot_mask(neighborhood, slot, key_mask)
        return jnp.where(seen, z, -jnp.inf).astype(query.dtype)

    by_slot = jax.lax.map(jax.checkpoint(logits, prevent_cse=False), _slots(neighborhood))
    return jnp.moveaxis(by_slot, 0, -1)


@with_more_heads
@functools.partial(jax.jit, static_argnames=("neighborhood",))
def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *Y M Dv"],
    neighborhood: Neighborhood,
    *,
    key_mask: Bool[Array, "B *Y"] | None = None,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.backends.reference.av`; one pass over the values for each window slot."""
    dtype = accumulation_dtype(weights.dtype)
    heads = value.shape[-2]
    grouped = (*weights.shape[:-2], heads, weights.shape[-2] // heads)

    def add(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        w, slot = xs[0], _apart(xs[1])
        w = jnp.where(_slot_mask(neighborhood, slot, key_mask), w, 0).astype(dtype)
        v = _slot_keys(value, neighborhood, slot).astype(dtype)
        return total + w.reshape(grouped)[..., None] * v[..., None, :], None

    # Inside `jax.shard_map`, what a loop starts from varies over devices as what it adds does.
    start, *_ = align_varying(jnp.zeros((*grouped, value.shape[-1]), dtype), weights, value)
    by_slot = jnp.moveaxis(weights, -1, 0)
    total, _ = jax.lax.scan(
        jax.checkpoint(add, prevent_cse=False), start, (by_slot, _slots(neighborhood))
    )
    return total.reshape(*weights.shape[:-1], value.shape[-1]).astype(weights.dtype)


def _apart(slot: Array) -> Array:
    """The slot of a turn of a loop, computed by itself.

    XLA's compiler for CPUs (jaxlib 0.12.0) fails on some programs in which reading the slot is
    fused with reading the keys at it: "Incorrect number of arguments passed to called function".
    """
    return jax.lax.optimization_barrier(slot)


def _slots(neighborhood: Neighborhood) -> Int[np.ndarray, "K axes"]:
    slots = np.unravel_index(np.arange(neighborhood.num_neighbors), neighborhood.kernel_size)
    return np.stack(slots, axis=-1).astype(np.int32)


def _slot_keys(
    x: Shaped[Array, "B *Y M D"], neighborhood: Neighborhood, slot: Int[Array, "axes"]
) -> Shaped[Array, "B *X M D"]:
    """What the key in one window slot of every query has."""
    for j, window in enumerate(neighborhood.axes):
        frame = axis_frame(window)
        x = frame.split_keys(x, 1 + j)
        groups = [
            _slide(jax.lax.slice_in_dim(x, first, stop, axis=1 + j), 2 + j, frame, first, slot[j])
            for first, stop in _groups_alike(frame)
        ]
        x = merge_groups(jnp.concatenate(groups, axis=1 + j), 1 + j, window.num_queries)
    return x


def _groups_alike(frame: AxisFrame) -> Iterator[tuple[int, int]]:
    """First and one past the last of consecutive dilation groups with the same windows."""
    start = frame.start[0]
    differs = np.flatnonzero((start[1:] != start[:-1]).any(axis=1)) + 1
    bounds = [0, *differs.tolist(), len(start)]
    return itertools.pairwise(bounds)


def _slide(x: Array, axis: int, frame: AxisFrame, group: int, slot: Int[Array, ""]) -> Array:
    """Along the positions of dilation groups, what the key in a slot of every query has.

    Windows slide evenly, or stand still for a while, as at a border and where a stride lets queries
    share one: slices, with a step, whose entries are repeated.
    """
    start = frame.start[0, group]
    lowest, size = int(start.min()), frame.window.kernel_size
    if frame.window.is_circle:
        x = cut_round(x, axis, lowest, int(start.max()) + size)
        start = start - lowest
    else:
        # Behind the last key there may be empty slots.
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, max(0, int(start.max()) + size - x.shape[axis]))
        x = jnp.pad(x, padding)
    x = jax.lax.dynamic_slice_in_dim(x, slot, int(start.max()) + 1, axis=axis)
    pieces = [
        jnp.repeat(
            jax.lax.slice_in_dim(x, first, first + (count - 1) * step + 1, step, axis=axis),
            repeats,
            axis=axis,
        )
        for first, step, count, repeats in _runs(start)
    ]
    return jnp.concatenate(pieces, axis=axis)


def _runs(start: Int[np.ndarray, "q"]) -> Iterator[tuple[int, int, int, int]]:
    """A sequence that never falls, as few pieces ``first, step, count, repeats``.

    Each is ``first, first + step, ...``, ``count`` numbers in all, each of them repeated.
    """
    changes = np.flatnonzero(np.diff(start)) + 1
    bounds = np.array([0, *changes, len(start)])
    values, repeats = start[bounds[:-1]], np.diff(bounds)
    i = 0
    while i < len(values):
        j = i + 1
        while (
            j < len(values)
            and repeats[j] == repeats[i]
            and values[j] - values[j - 1] == values[i + 1] - values[i]
        ):
            j += 1
        step = int(values[i + 1] - values[i]) if j > i + 1 else 1
        yield int(values[i]), step, j - i, int(repeats[i])
        i = j


def _slot_mask(
    neighborhood: Neighborhood, slot: Int[Array, "axes"], key_mask: Bool[Array, "B *Y"] | None
) -> Bool[Array, "#B *X 1"]:
    """Which queries have a key in the slot that is not hidden."""
    masks = [
        axis.slot_is_visible(jnp.arange(*axis.query_range, dtype=slot.dtype), slot[j])
        for j, axis in enumerate(neighborhood.axes)
    ]
    seen = functools.reduce(jnp.logical_and, jnp.meshgrid(*masks, indexing="ij", sparse=True))
    seen = seen[None, ..., None]
    if key_mask is None:
        return seen
    return seen & _slot_keys(key_mask[..., None, None], neighborhood, slot)[..., 0]


def _slot_bias(
    rpb: Float[Array, "N *R"], neighborhood: Neighborhood, slot: Int[Array, "axes"]
) -> Float[Array, "*X N"]:
    """The bias of the key in the slot, by one-hot products: a gather would scatter in reverse."""
    for j, axis in enumerate(neighborhood.axes):
        query = jnp.arange(*axis.query_range, dtype=slot.dtype)
        index = axis.slot_bias_index(query, slot[j])
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=rpb.dtype)
        rpb = jnp.tensordot(rpb, one_hot, axes=(1, 1), precision="highest")
    return jnp.moveaxis(rpb, 0, -1)
