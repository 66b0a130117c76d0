"""What a function of arrays says of their dimensions, so that it can be batched and partitioned."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import jax


class Dim(enum.Enum):
    """What a dimension of an array is; BATCH, HEADS and KV_HEADS may be split over devices.

    A batch is as many sets of images, one after the other, as there are SETS: each has a bias of
    its own.
    """

    BATCH = "b"
    SETS = "t"
    HEADS = "n"
    KV_HEADS = "m"
    SLOTS = "s"
    WHOLE = "w"


type Dims = tuple[Dim, ...]
# The mesh axes that a dimension is split over, as `jax.sharding.PartitionSpec` has them.
type Axes = dict[Dim, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """Dimensions of the arrays that a function takes and returns.

    Attributes:
      operands: dimensions of each argument; the first has batch and heads of the queries.
      results: dimensions of each result; one without a batch is a sum over it, or over each set.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]

    def taking(self, *more: Dims) -> Signature:
        """The signature of a function that takes further arguments after these."""
        return dataclasses.replace(self, operands=(*self.operands, *more))

    def giving(self, *more: Dims) -> Signature:
        """The signature of a function that returns further results after these."""
        return dataclasses.replace(self, results=(*self.results, *more))


def num_sets(operands: tuple[Dims, ...], arrays: Sequence[jax.Array]) -> int:
    """Sets of images that arguments tell apart."""
    found = (x.shape[0] for x, dims in zip(arrays, operands, strict=True) if Dim.SETS in dims)
    return max(found, default=1)


def axes_of(batch: Any, heads: Any, parts: int, kv_heads: int) -> Axes:
    """The mesh axes of each dimension, from those of the queries.

    Args:
      batch: mesh axes that the batch is split over.
      heads: mesh axes that query heads are split over.
      parts: of the heads.
      kv_heads: key heads in all.
    """
    if kv_heads == 1:
        # Every device has the one key head, and its part of the query heads.
        return {Dim.BATCH: batch, Dim.HEADS: heads}
    # Key heads that cannot be split keep the query heads together.
    heads = heads if kv_heads % parts == 0 else None
    return {Dim.BATCH: batch, Dim.HEADS: heads, Dim.KV_HEADS: heads}


def total(axes: Axes, x: jax.Array, dims: Dims) -> jax.Array:
    """Sum over the devices that each have a part of what the result has no dimension for."""
    shares_a_key_head = Dim.KV_HEADS in dims and axes.get(Dim.KV_HEADS) != axes[Dim.HEADS]
    summed = [Dim.BATCH] if Dim.BATCH not in dims else []
    summed += [Dim.HEADS] if shares_a_key_head else []
    for names in filter(None, map(axes.get, summed)):
        x = jax.lax.psum(x, names)
    return x
