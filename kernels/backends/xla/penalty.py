"""What is added to the logits of a tile: biases where a query sees a key, else a large penalty."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.backends.xla.tiles import Tiles, numbers_along
from natjax.kernels.backends.xla.walk import Boxes

# Finite, so that no difference of hidden logits is nan.
HIDDEN = -1e30
# The most entries of a table of what all kinds of tiles look like: 16 MiB of float32.
_LARGEST_TABLE = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
    """What a walk reads to know what to add to the logits of a tile.

    Tiles look alike but at the borders, so a table of what each kind looks like is laid out once
    where it is small. Otherwise it is computed for each tile, from the biases.

    Attributes:
      tiles: tiles of each axis.
      heads: key heads, and query heads of each, in whose shape biases come.
      has_bias: whether there is a bias.
    """

    tiles: Tiles
    heads: tuple[int, int]
    has_bias: bool

    @functools.cached_property
    def _kinds(self) -> tuple[tuple[Int[np.ndarray, "S"], ...], Int[np.ndarray, "A"]]:
        """Along each axis, the number of a tile of each kind; and the kind of each tile."""
        firsts, kinds = zip(*(axis.kinds() for axis in self.tiles), strict=True)
        examples = tuple(x.ravel() for x in np.meshgrid(*firsts, indexing="ij"))
        along = zip(kinds, numbers_along(self.tiles), strict=True)
        kind = np.ravel_multi_index([x[n] for x, n in along], [len(x) for x in firsts])
        return examples, kind

    @functools.cached_property
    def _has_table(self) -> bool:
        heads = math.prod(self.heads) if self.has_bias else 1
        logits = math.prod(axis.size * axis.halo for axis in self.tiles)
        return len(self._kinds[0][0]) * logits * heads <= _LARGEST_TABLE

    def read(
        self, rpb: Float[Array, "N *R"] | None, part: Int[Array, "axes"], dtype: jnp.dtype
    ) -> tuple[Array, Boxes] | None:
        """What tiles read and where: the table, or else the biases if there are any."""
        bias = None if rpb is None else rpb.reshape(*self.heads, *rpb.shape[1:]).astype(dtype)
        if not self._has_table:
            return None if bias is None else (bias, Boxes.whole(bias.ndim))
        of_kind = jax.vmap(lambda *numbers: self._compute(numbers, bias, part, dtype))
        examples, kind = self._kinds
        starts = np.zeros((len(kind), 5), np.int32)
        starts[:, 0] = kind
        table = of_kind(*map(jnp.asarray, examples))
        return table, Boxes((1, None, None, None, None), starts)

    def of_tile(
        self,
        tile: Int[Array, ""],
        read: Array | None,
        part: Int[Array, "axes"],
        dtype: jnp.dtype,
    ) -> Float[Array, "#M #G q k"]:
        """What to add, from what the tile has read."""
        if read is not None and self._has_table:
            return read[0]
        numbers = jnp.unravel_index(tile, [axis.count for axis in self.tiles])
        return self._compute(numbers, read, part, dtype)

    def _compute(
        self,
        numbers: tuple[Array, ...],
        bias: Float[Array, "M G *R"] | None,
        part: Int[Array, "axes"],
        dtype: jnp.dtype,
    ) -> Float[Array, "#M #G q k"]:
        """What to add for the tile with a number along each axis."""
        seen = _is_seen(self.tiles, numbers, part)
        added = jnp.zeros((), dtype) if bias is None else _lay_out(bias, self.tiles, numbers)
        penalty = jnp.where(seen, added, jnp.asarray(HIDDEN, dtype))
        n = len(self.tiles)
        queries, keys = (math.prod(penalty.shape[i : i + n]) for i in (2, 2 + n))
        return penalty.reshape(*penalty.shape[:2], queries, keys)


def in_force(
    x: Int[np.ndarray, "P A n"], part: Int[Array, "axes"], axis: int, number: Int[Array, ""]
) -> Int[Array, "n"]:
    """What a tile has along an axis, for the origin that is in force."""
    return jnp.asarray(x)[0 if len(x) == 1 else part[axis], number]


def _is_seen(
    tiles: Tiles, numbers: tuple[Array, ...], part: Int[Array, "axes"]
) -> Bool[Array, "1 1 *t *h"]:
    """Which queries of a tile see which keys of its slab."""
    n = len(tiles)
    masks = []
    for j, (axis, number) in enumerate(zip(tiles, numbers, strict=True)):
        start, end = (in_force(x, part, j, number)[:, None] for x in (axis.start, axis.end))
        slot = jnp.arange(axis.halo, dtype=start.dtype)[None]
        shape = [1] * (2 + 2 * n)
        shape[2 + j], shape[2 + n + j] = axis.size, axis.halo
        masks.append(((start <= slot) & (slot < end)).reshape(shape))
    return functools.reduce(jnp.logical_and, masks)


def _lay_out(
    bias: Float[Array, "M G *R"], tiles: Tiles, numbers: tuple[Array, ...]
) -> Float[Array, "M G *t *h"]:
    """The bias of each query and key of a tile, by one-hot products: a gather would scatter."""
    n = len(tiles)
    for axis, number in zip(tiles, numbers, strict=True):
        query, slot = np.arange(axis.size)[:, None], np.arange(axis.halo)[None]
        index = jnp.asarray(slot - query, jnp.int32) + jnp.asarray(axis.bias_shift)[number]
        one_hot = jax.nn.one_hot(index, bias.shape[2], dtype=bias.dtype)
        # Takes the foremost axis of biases away and appends (t, h).
        bias = jnp.tensordot(bias, one_hot, axes=(2, 2), precision="highest")
    return bias.transpose(0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2))
