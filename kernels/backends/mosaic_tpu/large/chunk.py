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
from natjax.kernels.plan.pattern import HIDDEN

type Ref = Any
type Ints = Any
type Hide = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a kernel is at, inside of it.

    Attributes:
      walk: tiles and chunks.
      number: of the step.
      plan: `Walk.steps`.
      masks: the mask of the chunk along each axis, ``[tile, columns]``.
    """

    walk: Walk
    number: Ints
    plan: Ref
    masks: tuple[Ref, ...]

    @property
    def tile(self) -> Ints:
        """Number of the tile."""
        return self._field(0)

    @property
    def chunk(self) -> Ints:
        """Number of the chunk among those that a tile may have."""
        return self._field(1)

    def run(self, begin: Callable[[], None], body: Callable[[Hide], None], end: Any) -> None:
        """Call ``begin`` at the first chunk of a tile, ``body`` at each, and ``end`` at the last.

        ``body`` gets what hides logits; where all are seen, it does nothing.
        """
        flags = self._field(3)
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


def as_column(row: jax.Array) -> jax.Array:
    """``[1, n]`` as ``[n, 1]``."""
    return _diagonal(row).sum(axis=1, keepdims=True)


def as_row(column: jax.Array) -> jax.Array:
    """``[n, 1]`` as ``[1, n]``."""
    return _diagonal(column).sum(axis=0, keepdims=True)


def _diagonal(x: jax.Array) -> jax.Array:
    """A vector on the diagonal, with zeros around it; a product would spread nan."""
    n = max(x.shape)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in range(2))
    return jnp.where(row == column, x, jnp.zeros_like(x))
