"""Window slots, as the unfused ops have them: which hold a key, and how they add up by bias."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from natjax.kernels.neighborhood import Neighborhood


def slot_parts(
    neighborhood: Neighborhood,
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """A number of each query and of each key, whose difference is a window slot.

    The slot that a key has in the window of a query that sees it is the key's number less the
    query's. Which queries see it, the numbers do not say.
    """
    queries = keys = np.zeros(1, int)
    for axis in neighborhood.axes:
        token, size = np.arange(axis.length), axis.kernel_size
        queries = (queries[:, None] * size + axis.start(token)).reshape(-1)
        keys = (keys[:, None] * size + token // axis.dilation).reshape(-1)
    return queries, keys


def fill_hidden(
    neighborhood: Neighborhood, weights: Float[Array, "B T N K"], value: float
) -> Float[Array, "B T N K"]:
    """Set the empty slots of causal windows, which kernels leave as they are."""
    if not any(axis.is_causal for axis in neighborhood.axes):
        return weights
    visible = _visible_slots(neighborhood)
    return jnp.where(visible[None], weights, jnp.asarray(value, weights.dtype))


def sum_by_bias(
    neighborhood: Neighborhood, dlogits: Float[Array, "B T N K"]
) -> Float[Array, "N *R"]:
    """Sum over images, then over tokens and slots by bias, one axis at a time."""
    sums = fill_hidden(neighborhood, dlogits, 0.0).astype(jnp.float32).sum(axis=0)
    x = sums.transpose(1, 0, 2).reshape(
        sums.shape[1], *neighborhood.shape, *neighborhood.kernel_size
    )
    for i, axis in enumerate(neighborhood.axes):
        # Tokens and slots of one axis go, its biases come last.
        query = np.arange(axis.length)[:, None]
        index = axis.bias_index(query, axis.neighbor(query, np.arange(axis.kernel_size)[None]))
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=jnp.float32)
        axes = ((1, 1 + len(neighborhood.axes) - i), (0, 1))
        x = jnp.tensordot(x, one_hot, axes=axes, precision="highest")
    return x


def _visible_slots(neighborhood: Neighborhood) -> Array:
    """Which window slots of each query hold a key, ``[T, 1, K]``."""
    n = len(neighborhood.axes)
    masks = []
    for i, axis in enumerate(neighborhood.axes):
        query = jnp.arange(axis.length, dtype=jnp.int32)[:, None]
        mask = axis.slot_is_visible(query, jnp.arange(axis.kernel_size, dtype=jnp.int32)[None, :])
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = mask.shape
        masks.append(mask.reshape(shape))
    return functools.reduce(jnp.logical_and, masks).reshape(neighborhood.num_tokens, 1, -1)
