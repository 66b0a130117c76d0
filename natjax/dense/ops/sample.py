"""A random choice of boxes to train on, with a fixed number and share of positive ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from natjax.dense.ops.assign import Assignment

# Chooses ``number`` of the candidates of an image, or all where there are fewer, from key,
# candidates, ``number`` and what that cannot exceed. `random_subset` is one.
Subset = Callable[[Array, Array, Array, int], Array]


def random_subset(
    key: PRNGKeyArray, candidates: Bool[Array, "N"], number: Int[Array, ""], limit: int
) -> Bool[Array, "N"]:
    """Choose uniformly at random, without repetition; a pure function of the key.

    Args:
      key: random key; another for each image.
      candidates: what to choose from.
      number: how many to choose; all candidates, where there are fewer.
      limit: what ``number`` cannot exceed.
    """
    total = candidates.shape[0]
    draws = jax.random.uniform(key, (total,))
    best, indices = jax.lax.top_k(jnp.where(candidates, draws, -1.0), min(limit, total))
    chosen = (best >= 0) & (jnp.arange(best.shape[0], dtype=jnp.int32) < number)
    return jnp.zeros(total, bool).at[indices].set(chosen, unique_indices=True)


class Sampled(NamedTuple):
    """Which boxes to train on.

    Attributes:
      positive: chosen boxes that belong to an object.
      negative: chosen boxes that are background.
    """

    positive: Bool[Array, "*B N"]
    negative: Bool[Array, "*B N"]


def sample(
    key: PRNGKeyArray,
    assignment: Assignment,
    *,
    number: int,
    positive_fraction: float,
    subset: Subset = random_subset,
) -> Sampled:
    """Choose ``number`` boxes, at most a share of them positive, the rest background.

    Where there are too few background boxes, fewer are chosen in all.

    Args:
      key: random key; another for each image.
      assignment: of the boxes of one image.
      number: of boxes to choose.
      positive_fraction: the largest share of positive boxes.
      subset: makes the choice.
    """
    most = int(number * positive_fraction)
    for_positive, for_negative = jax.random.split(key)
    positive = subset(for_positive, assignment.positive, jnp.int32(most), most)
    rest = number - jnp.sum(positive, dtype=jnp.int32)
    negative = subset(for_negative, assignment.negative, rest, number)
    return Sampled(positive, negative)


class Slots(NamedTuple):
    """Chosen boxes in a fixed number of slots: positive ones, then negative ones, then none.

    Attributes:
      indices: of the boxes, ascending among the positive and among the negative ones.
      positive: whether the slot holds a positive box.
      valid: whether it holds a box at all.
    """

    indices: Int[Array, "*B S"]
    positive: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]


def in_slots(sampled: Sampled, number: int) -> Slots:
    """Put the chosen boxes of an image into ``number`` slots; more boxes are dropped."""
    rank = jnp.where(sampled.positive, 0, jnp.where(sampled.negative, 1, 2))
    missing = max(0, number - rank.shape[0])
    rank = jnp.pad(rank, (0, missing), constant_values=2)
    order = jnp.argsort(rank, stable=True)[:number].astype(jnp.int32)
    kind = rank[order]
    return Slots(jnp.where(kind < 2, order, 0), kind == 0, kind < 2)
