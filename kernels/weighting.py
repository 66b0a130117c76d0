"""What happens to logits and weights on the way: a soft cap, and dropout by key.

Whether dropout keeps a weight is decided by bits that are hashed from a seed of image and head and
the numbers of query and key. So the same weights are dropped forward and backward, by every
implementation, however it cuts tokens into tiles, and nothing needs to be stored.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, UInt32


@functools.partial(jax.tree_util.register_dataclass, data_fields=["seeds"], meta_fields=["rate"])
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout of attention weights.

    Attributes:
      seeds: two words for each image and query head, ``uint32[B, N, 2]``; or what JAX has in their
        place while it takes a tree apart and puts it together again.
      rate: share of the weights to drop, above 0 and below 1.
    """

    seeds: Any
    rate: float


def soft_capped(products: Float[Array, "*Y"], soft_cap: float | None) -> Float[Array, "*Y"]:
    """``soft_cap * tanh(products / soft_cap)``: within the cap, and as it was near 0."""
    return products if soft_cap is None else soft_cap * jnp.tanh(products / soft_cap)


def soft_cap_slope(capped: Float[Array, "*Y"], soft_cap: float) -> Float[Array, "*Y"]:
    """The derivative of `soft_capped`, from its result."""
    return 1 - (capped / soft_cap) ** 2


def draw_dropout(key: Array, rate: float, batch: int, heads: int) -> Dropout:
    """The dropout of a call; ``key`` is a key of `jax.random`."""
    return Dropout(jax.random.bits(key, (batch, heads, 2), jnp.uint32), rate)


def dropout_factors(
    dropout: Dropout,
    seeds: UInt32[Array, "*Y 2"],
    queries: Integer[Array, "q"],
    keys: Integer[Array, "k"],
    dtype: jax.typing.DTypeLike,
) -> Float[Array, "*Y q k"]:
    """What to multiply weights by: 0, or ``1 / (1 - rate)`` so that their mean stays.

    Args:
      dropout: for its rate.
      seeds: the seeds of the images and heads at hand, in any layout.
      queries: number of each query among all of them.
      keys: number of each key among all of them.
      dtype: of the result.
    """
    first, second = (seeds[..., i, None, None] for i in range(2))
    queries, keys = (x.astype(jnp.uint32) for x in (queries[:, None], keys[None, :]))
    shape = (1,) * (seeds.ndim - 1)
    queries, keys = (x.reshape(*shape, *x.shape) for x in (queries, keys))
    bits = _mix(_mix(queries + first) + keys)
    bits = _mix(bits ^ second)
    kept = bits >= jnp.uint32(int(dropout.rate * 2**32))
    return jnp.where(kept, 1 / (1 - dropout.rate), 0.0).astype(dtype)


def _mix(x: UInt32[Array, "*Y"]) -> UInt32[Array, "*Y"]:
    """Every bit of the result depends on every bit of ``x``: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
