"""One step of a kernel: a tile of rows, and a chunk of the columns that it meets."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.backends.mosaic_tpu.large.walk import IS_FIRST, IS_LAST, IS_MASKED, Walk
from natjax.kernels.backends.mosaic_tpu.layout import LANES, SUBLANES
from natjax.kernels.backends.mosaic_tpu.program import ROWS_BY_ROWS, product
from natjax.kernels.plan.pattern import HIDDEN

# Lanes that the statistics of a head take, and heads that share 128 of them.
STATISTIC_LANES = 8
HEADS_OF_STATISTICS = LANES // STATISTIC_LANES

type Ref = Any
type Ints = Any


@dataclasses.dataclass(frozen=True)
class Step:
    """What a kernel is at, inside of it.

    Attributes:
      walk: tiles and chunks.
      block: number of the block of lanes.
      image: number of the image.
      number: of the step.
      images: images of a set, which have one bias; None where all have one.
      plan: `Walk.steps`.
      masks: the mask of the chunk along each axis, ``[tile, columns]``.
      bias: what is added to the logits, ``[heads, 1, *block, width, lanes]`` (`BiasWalk`);
        None without a bias.
      scale: factor on the products of queries and keys.
    """

    walk: Walk
    block: Ints
    image: Ints
    number: Ints
    images: int | None
    plan: Ref
    masks: tuple[Ref, ...]
    bias: Ref
    scale: float

    @property
    def tile(self) -> Ints:
        """Number of the tile."""
        return self._field(0)

    @property
    def is_first_of_set(self) -> Ints:
        """Whether it is the first step with its block of lanes and its set of images."""
        image = self.image if self.images is None else self.image % self.images
        return (image == 0) & (self.number == 0)

    def run(self, begin: Callable[[], None], body: Callable[[bool], None], end: Any) -> None:
        """Call ``begin`` at the first chunk of a tile, ``body`` at each, and ``end`` at the last.

        ``body`` is told whether there are logits to hide.
        """
        flags = self._field(1)
        pl.when(flags & IS_FIRST != 0)(begin)
        for flag in sorted(self.walk.bodies - {0}):
            turn = functools.partial(body, flag == IS_MASKED)
            if len(self.walk.bodies) == 1:
                turn()
            else:
                pl.when(flags & flag != 0)(turn)
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

    def parts(self, most: int) -> list[slice]:
        """The columns in parts of so many at most, cut at multiples of the lanes."""
        vectors = self.walk.num_columns // LANES
        count = -(-vectors // max(1, most // LANES))
        cuts = [LANES * (vectors * i // count) for i in range(count + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]

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

    def logits(
        self, head: Ints, rows: jax.Array, columns: jax.Array, part: slice, *, is_masked: bool
    ) -> jax.Array:
        """Logits in units of log2(e), ``[rows, columns of the part]``.

        Args:
          head: of the heads in the lanes.
          rows: `rows_of` queries or keys, of one head.
          columns: `columns_of` the others.
          part: of the columns; it begins and ends at a multiple of the lanes.
          is_masked: whether some of them are hidden. Those are selected, and not only added to: nan
            in a key must not reach queries that do not see it.
        """
        x = product(rows, columns[part], ROWS_BY_ROWS) * (self.scale * LOG2_E)
        if self.bias is not None:
            x = self._by_line(x, lambda line, x: x + self._biases(head, line, part))
        return self.hide(x, part, HIDDEN) if is_masked else x

    def hide(self, x: jax.Array, part: slice, value: float) -> jax.Array:
        """``[rows, columns of the part]``, with a value where a row does not see a column."""
        return self._by_line(x, lambda line, x: jnp.where(self._sees(line, part), x, value))

    def add_by_bias(self, sums: Ref, head: Ints, x: jax.Array, part: slice) -> None:
        """Add what belongs to logits to sums for the entries of `bias`.

        Args:
          sums: ``[heads, kinds, *entries, width, lanes]``.
          head: of the heads in the lanes.
          x: what is added, ``[rows, columns of the part]``, 0 where a row does not see a column.
          part: of the columns.
        """
        plan, width = self.walk.biases, self.walk.tile[-1]
        assert plan is not None
        added: dict[tuple[Any, ...], list[jax.Array]] = {}
        for number, line in enumerate(self._lines()):
            rows = x[number * width : (number + 1) * width]
            for first in range(part.start, part.stop, LANES):
                at, column = plan.entry(line, first), first - part.start
                added.setdefault(at, []).append(rows[:, column : column + LANES])
        kind, starts = self._field(plan.field), self._bias_starts()
        for (*entry, lane), parts in added.items():
            place = [start + i for start, i in zip(starts, entry, strict=True)]
            at = (head, kind, *place, slice(None), pl.ds(lane, LANES))
            sums[at] += sum(parts[1:], start=parts[0])

    def _bias_starts(self) -> list[Ints]:
        """The first entry of the block of `bias` along each axis but the last."""
        plan, n = self.walk.biases, len(self.walk.axes)
        assert plan is not None
        return [plan.start(i, self._field(3 + i), self._field(3 + n + i)) for i in range(n - 1)]

    def _field(self, i: int) -> Ints:
        return self.plan[self.number * self.walk.num_fields + i]

    def _lines(self) -> Iterator[tuple[int, ...]]:
        """Where the lines of a tile are along all axes but the last, along which they lie."""
        return itertools.product(*map(range, self.walk.tile[:-1]))

    def _by_line(
        self, x: jax.Array, function: Callable[[Sequence[int], jax.Array], jax.Array]
    ) -> jax.Array:
        """What a function of a line and its rows gives for each line of ``[rows, columns]``."""
        width = self.walk.tile[-1]
        parts = [
            function(line, x[i * width : (i + 1) * width]) for i, line in enumerate(self._lines())
        ]
        return jnp.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]

    def _sees(self, line: Sequence[int], part: slice) -> jax.Array:
        """Which columns the rows of a line see."""
        *others, last = self.masks
        numbers = [mask[pl.ds(i, 1), part] for mask, i in zip(others, line, strict=True)]
        return last[:, part] < functools.reduce(jnp.minimum, numbers)

    def _biases(self, head: Ints, line: Sequence[int], part: slice) -> jax.Array:
        """The biases of a line, ``[width, columns of the part]``."""
        plan, parts = self.walk.biases, []
        assert plan is not None
        assert self.bias is not None
        for first in range(part.start, part.stop, LANES):
            *entry, lane = plan.entry(line, first)
            parts.append(self.bias[head, 0, *entry, :, lane : lane + LANES])
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def as_row(column: jax.Array) -> jax.Array:
    """``[n, 1]`` as ``[1, n]``."""
    return _diagonal(column).sum(axis=0, keepdims=True)


def _diagonal(x: jax.Array) -> jax.Array:
    """A vector on the diagonal, with zeros around it; a product would spread nan."""
    n = max(x.shape)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in range(2))
    return jnp.where(row == column, x, jnp.zeros_like(x))
