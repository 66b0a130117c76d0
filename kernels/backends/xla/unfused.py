"""The unfused ops of implementation "xla": one window slot at a time, for all queries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.backends.xla import tiles as tiling
from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.neighborhood import AxisWindow, Neighborhood, window_start
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.sharding.partitioning import align_varying


@functools.partial(jax.jit, static_argnames=("neighborhood", "scale"))
def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    neighborhood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.backends.reference.qk`; one pass over the keys for each window slot."""
    return on_device_parts(
        functools.partial(_qk, neighborhood=neighborhood, scale=scale), (query, key), rpb
    )


def _qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
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
        k = _slot_keys(key, neighborhood, slot)[..., None, :]
        z = scale * jnp.sum(q * k.astype(dtype), axis=-1)
        z = z.reshape(query.shape[:-1])
        if bias is not None:
            z += _slot_bias(bias, neighborhood, slot)[None]
        return jnp.where(_slot_mask(neighborhood, slot)[None, ..., None], z, -jnp.inf).astype(
            query.dtype
        )

    by_slot = jax.lax.map(jax.checkpoint(logits, prevent_cse=False), _slots(neighborhood))
    return jnp.moveaxis(by_slot, 0, -1)


@functools.partial(jax.jit, static_argnames=("neighborhood",))
def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    neighborhood: Neighborhood,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.backends.reference.av`; one pass over the values for each window slot."""
    dtype = accumulation_dtype(weights.dtype)
    heads = value.shape[-2]
    grouped = (*weights.shape[:-2], heads, weights.shape[-2] // heads)

    def add(total: Array, xs: tuple[Array, Array]) -> tuple[Array, None]:
        w, slot = xs
        w = (
            jnp.where(_slot_mask(neighborhood, slot)[None, ..., None], w, 0)
            .astype(dtype)
            .reshape(grouped)
        )
        v = _slot_keys(value, neighborhood, slot).astype(dtype)
        return total + w[..., None] * v[..., None, :], None

    # Inside `jax.shard_map`, what a loop starts from varies over devices as what it adds does.
    start, *_ = align_varying(jnp.zeros((*grouped, value.shape[-1]), dtype), weights, value)
    by_slot = jnp.moveaxis(weights, -1, 0)
    total, _ = jax.lax.scan(
        jax.checkpoint(add, prevent_cse=False), start, (by_slot, _slots(neighborhood))
    )
    return total.reshape(*weights.shape[:-1], value.shape[-1]).astype(weights.dtype)


def _slots(neighborhood: Neighborhood) -> Int[np.ndarray, "K axes"]:
    slots = np.unravel_index(np.arange(neighborhood.num_neighbors), neighborhood.kernel_size)
    return np.stack(slots, axis=-1).astype(np.int32)


def _slot_keys(
    x: Float[Array, "B *X M D"], neighborhood: Neighborhood, slot: Int[Array, "axes"]
) -> Float[Array, "B *X M D"]:
    """The key (or value) in one window slot of every query."""
    for j, axis in enumerate(neighborhood.axes):
        length = axis.max_group_length
        x = tiling.split_groups(x, 1 + j, axis, length)
        longer = axis.length % axis.dilation or axis.dilation
        groups = [jax.lax.slice_in_dim(x, 0, longer, axis=1 + j)]
        if longer < axis.dilation:
            shorter = jax.lax.slice_in_dim(x, longer, axis.dilation, axis=1 + j)
            groups.append(jax.lax.slice_in_dim(shorter, 0, length - 1, axis=2 + j))
        groups = [_slide(group, 2 + j, axis, slot[j], length) for group in groups]
        x = tiling.merge_groups(jnp.concatenate(groups, axis=1 + j), 1 + j, axis)
    return x


def _slide(x: Array, axis: int, window: AxisWindow, slot: Int[Array, ""], length: int) -> Array:
    """`_slot_keys` along the positions of dilation groups of one length, padded to ``length``.

    The window slides by one key a query but stands still at the borders: a slice, whose ends are
    repeated.
    """
    positions = x.shape[axis]
    start = window_start(
        np.arange(positions),
        positions,
        kernel_size=window.kernel_size,
        is_causal=window.is_causal,
    )
    left, slides = int((start == 0).sum()) - 1, int(start.max())
    x = jax.lax.dynamic_slice_in_dim(x, slot, slides + 1, axis=axis)
    ends = (
        jax.lax.slice_in_dim(x, 0, 1, axis=axis),
        jax.lax.slice_in_dim(x, slides, None, axis=axis),
    )
    first, last = (
        jnp.broadcast_to(end, (*x.shape[:axis], count, *x.shape[axis + 1 :]))
        for end, count in zip(ends, (left, positions - 1 - left - slides), strict=True)
    )
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, length - positions)
    return jnp.pad(jnp.concatenate([first, x, last], axis=axis), padding)


def _slot_mask(neighborhood: Neighborhood, slot: Int[Array, "axes"]) -> Bool[Array, "*X"]:
    """Which queries have a key in the slot."""
    masks = [
        axis.slot_is_visible(jnp.arange(axis.length, dtype=slot.dtype), slot[j])
        for j, axis in enumerate(neighborhood.axes)
    ]
    return functools.reduce(jnp.logical_and, jnp.meshgrid(*masks, indexing="ij", sparse=True))


def _slot_bias(
    rpb: Float[Array, "N *R"], neighborhood: Neighborhood, slot: Int[Array, "axes"]
) -> Float[Array, "*X N"]:
    """The bias of the key in the slot, by one-hot products: a gather would scatter in reverse."""
    for j, axis in enumerate(neighborhood.axes):
        query = jnp.arange(axis.length, dtype=slot.dtype)
        index = axis.bias_index(query, axis.neighbor(query, slot[j]))
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=rpb.dtype)
        rpb = jnp.tensordot(rpb, one_hot, axes=(1, 1), precision="highest")
    return jnp.moveaxis(rpb, 0, -1)
