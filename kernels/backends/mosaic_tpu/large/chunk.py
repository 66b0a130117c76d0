"""One step of a kernel: a tile of rows, and a chunk of the columns that it meets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.large.walk import IS_FIRST, IS_LAST, IS_MASKED, Walk
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES
from natjax.kernels.backends.mosaic_tpu.program import ROWS_BY_ROWS, product
from natjax.kernels.plan.pattern import HIDDEN

# Lanes that the statistics of a head take, and heads that share 128 of them.
STATISTIC_LANES = 8
HEADS_OF_STATISTICS = LANES // STATISTIC_LANES

type Ref = Any
type Ints = Any
type Hide = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a kernel is at, inside of it.

    Attributes:
      walk: tiles and chunks.
      block: number of the block of lanes.
      number: of the step.
      plan: `Walk.steps`.
      masks: the mask of the chunk along each axis, ``[tile, columns]``.
    """

    walk: Walk
    block: Ints
    number: Ints
    plan: Ref
    masks: tuple[Ref, ...]

    @property
    def tile(self) -> Ints:
        """Number of the tile."""
        return self._field(0)

    def run(self, begin: Callable[[], None], body: Callable[[Hide], None], end: Any) -> None:
        """Call ``begin`` at the first chunk of a tile, ``body`` at each, and ``end`` at the last.

        ``body`` gets what hides logits; where all are seen, it does nothing.
        """
        flags = self._field(1)
        pl.when(flags & IS_FIRST != 0)(begin)
        masked = functools.partial(body, self._hide)
        plain = functools.partial(body, lambda x: x)
        if len(self.walk.masked) == 1:
            (masked if True in self.walk.masked else plain)()
        else:
            pl.when(flags & IS_MASKED != 0)(masked)
            pl.when(flags & IS_MASKED == 0)(plain)
        pl.when(flags & IS_LAST != 0)(end)

    def each_head(self, body: Callable[[Ints], None]) -> None:
        """Call ``body(head)`` for the heads in the lanes."""
        if self.walk.heads == 1:
            body(0)
            return

        def turn(head: Ints, carry: tuple[()]) -> tuple[()]:
            body(head)
            return carry

        jax.lax.fori_loop(0, self.walk.heads, turn, ())

    def select(self, head: Ints, own: jax.Array, others: jax.Array) -> jax.Array:
        """``own`` in the lanes of a head, ``others`` elsewhere."""
        if self.walk.heads == 1:
            return own
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, self.walk.lanes), 1)
        return jnp.where(lane >> (self.walk.head_dim.bit_length() - 1) == head, own, others)

    def own(self, head: Ints, x: jax.Array) -> jax.Array:
        """The lanes of a head, with zeros in the others."""
        return self.select(head, x, jnp.zeros_like(x))

    def rows_of(self, ref: Ref) -> jax.Array:
        """A tile of a map, ``[rows, lanes]``."""
        return ref[...].reshape(self.walk.num_rows, self.walk.lanes)

    def columns_of(self, ref: Ref) -> jax.Array:
        """A chunk of a map, ``[columns, lanes]``."""
        return ref[...].reshape(self.walk.num_columns, self.walk.lanes)

    def columns_in(self, ref: Ref, head: Ints) -> tuple[jax.Array, jax.Array]:
        """The statistics of a head from a chunk of their map, ``[1, columns]`` each."""
        x = ref[...].reshape(self.walk.num_columns, LANES)
        row = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
        ones = self._is_statistic(head, row).astype(jnp.float32).astype(x.dtype)
        x = product(ones, x, ROWS_BY_ROWS)
        return x[:1], x[1:2]

    def rows_in(self, ref: Ref, head: Ints) -> tuple[jax.Array, jax.Array]:
        """The statistics of a head from a tile of their map, ``[rows, 1]`` each."""
        x = ref[...].reshape(self.walk.num_rows, LANES).astype(jnp.float32)
        parts = [jnp.where(self._is_statistic(head, i), x, jnp.zeros_like(x)) for i in range(2)]
        first, second = (part.sum(axis=1, keepdims=True) for part in parts)
        return first, second

    def _is_statistic(self, head: Ints, which: Ints) -> jax.Array:
        """Whether lanes, ``[1, 128]``, hold one of the two statistics of a head."""
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
        number = (self.block * self.walk.heads + head) % HEADS_OF_STATISTICS
        first = number * STATISTIC_LANES + 3 * which
        return (first <= lane) & (lane < first + 3)

    def _field(self, i: int) -> Ints:
        return self.plan[self.number * self.walk.num_fields + i]

    def _hide(self, logits: jax.Array) -> jax.Array:
        """Logits, ``[rows, columns]``, of those that see each other.

        Selected and not only added to: nan in a key must not reach those that do not see it.
        """
        *others, last = self.masks
        width = self.walk.tile[-1]
        parts = []
        for i in range(self.walk.num_rows // width):
            number, numbers = i, []
            for mask in reversed(others):
                numbers.append(mask[pl.ds(number % mask.shape[0], 1), :])
                number //= mask.shape[0]
            is_seen = last[...] < functools.reduce(jnp.minimum, numbers)
            parts.append(jnp.where(is_seen, logits[i * width : (i + 1) * width], HIDDEN))
        return jnp.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]


def as_row(column: jax.Array) -> jax.Array:
    """``[n, 1]`` as ``[1, n]``."""
    return _diagonal(column).sum(axis=0, keepdims=True)


def _diagonal(x: jax.Array) -> jax.Array:
    """A vector on the diagonal, with zeros around it; a product would spread nan."""
    n = max(x.shape)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in range(2))
    return jnp.where(row == column, x, jnp.zeros_like(x))
