"""Going over the chunks that a tile meets, one after the other.

Which chunk comes next is counted, an addition and a comparison along each axis, by those who
multiply and by those who copy; the alternative is to divide the number of a turn by what a tile
meets, which is known only when a kernel runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from natjax.kernels.plan.blocks import Ints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """A place in the order of chunks.

    Attributes:
      number: turns before, of all slabs.
      slab: slabs before.
      index: number of the chunk along each axis of its slab.
    """

    number: Ints
    slab: Ints
    index: tuple[Ints, ...]


@dataclasses.dataclass(frozen=True)
class Walk:
    """The chunks of a slab that a tile meets, once for each of several slabs.

    Attributes:
      first: the first of them along each axis.
      end: past the last of them along each axis.
      slabs: how many slabs look alike: of images, or of the query heads of a key head.
      outermost: the axis along which chunks change last; the others follow in their order.
    """

    first: tuple[Ints, ...]
    end: tuple[Ints, ...]
    slabs: Ints = 1
    outermost: int = 0

    @property
    def chunks(self) -> Ints:
        """Chunks of a slab."""
        return math.prod(map(self._count, range(len(self.first))))

    @property
    def total(self) -> Ints:
        """Chunks of all slabs."""
        return self.slabs * self.chunks

    def start(self) -> Turn:
        """The first turn."""
        return Turn(jnp.int32(0), jnp.int32(0), tuple(map(jnp.int32, self.first)))

    def after(self, turn: Turn, turns: int = 1) -> Turn:
        """The turn that comes so many turns later."""
        for _ in range(turns):
            turn = self._next(turn)
        return turn

    def over(
        self,
        slab: Ints,
        step: Callable[[Turn, Any], Any],
        carry: Any,
        own: tuple[Ints, Ints] | None = None,
        passing: Callable[[Ints], None] = lambda number: None,
    ) -> Any:
        """Go over the chunks of a slab.

        Args:
          slab: its number.
          step: a function of a turn and of what the turn before has left, which gives what it
            leaves.
          carry: what the first turn finds.
          own: the first chunk along the outermost axis that is stepped on, and past the last; None
            for all.
          passing: a function of the number of each other turn.

        Returns:
          What the last turn has left.
        """
        before, begin, end, index = slab * self.chunks, 0, self.chunks, list(self.first)
        if own is not None:
            others = (i for i in range(len(self.first)) if i != self.outermost)
            layer = math.prod(map(self._count, others))
            begin, end = ((x - self.first[self.outermost]) * layer for x in own)
            index[self.outermost] = own[0]
            pl.loop(0, begin)(lambda n: passing(before + n))

        def body(n: Ints, state: Any) -> Any:
            index, carry = state
            turn = Turn(before + n, slab, index)
            return self._next(turn).index, step(turn, carry)

        _, carry = lax.fori_loop(begin, end, body, (tuple(map(jnp.int32, index)), carry))
        if own is not None:
            pl.loop(end, self.chunks)(lambda n: passing(before + n))
        return carry

    def _next(self, turn: Turn) -> Turn:
        index, carried = list(turn.index), 1
        inner = [axis for axis in range(len(index)) if axis != self.outermost]
        for axis in (*reversed(inner), self.outermost):
            if isinstance(self._count(axis), int) and self._count(axis) == 1:
                continue
            one_more = index[axis] + carried
            is_past = one_more == self.end[axis]
            index[axis] = jnp.where(is_past, self.first[axis], one_more)
            carried = is_past.astype(jnp.int32)
        return Turn(turn.number + 1, turn.slab + carried, tuple(index))

    def _count(self, axis: int) -> Ints:
        return self.end[axis] - self.first[axis]
