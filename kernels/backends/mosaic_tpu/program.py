"""What forward and backward kernels share: tiles, slabs, and heads packed in the lanes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.layout import SUBLANES, Layout
from natjax.kernels.backends.mosaic_tpu.maps import Groups, Images

type Ref = Any
type Ints = Any
type Map = Images | Groups

# Which dimensions products sum over.
ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
PLAIN = (((1,), (0,)), ((), ()))
COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))


def product(a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
    """A matrix product in float32; float32 operands are not rounded."""
    precision = "highest" if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Steps:
    """How much a kernel does at once.

    Attributes:
      images: images of a block.
      maps: maps whose keys are in scratch memory at a time.
      tiles: tiles that a kernel works on side by side. Each waits for the one before only in what
        both write, so that the units of the core have something to do.
    """

    images: int
    maps: int
    tiles: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile of queries.

    Attributes:
      map: which of the maps at hand.
      image: which of the images of the block.
      kind: of its blocks, a number of the table.
      number: among the tiles of an image, one dilation group after the other.
      first: first position along each axis.
      rows: its queries along each axis.
      slab: its keys along each axis of the copy.
    """

    map: Ints
    image: Ints
    kind: Ints
    number: Ints
    first: tuple[Ints, ...]
    rows: tuple[Any, ...]
    slab: tuple[Any, ...]


# What is done with tiles side by side, given the first of the maps at hand.
type Stages = Callable[[Ints, Sequence[Tile]], None]


@dataclasses.dataclass(frozen=True)
class Copies:
    """A map of keys with its copies in scratch memory.

    Attributes:
      map: the map.
      copies: ``[maps at hand, *positions, lanes]``, shifted.
      factor: on what is written from the copies to the map.
    """

    map: Map
    copies: Ref
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Again:
    """A second walk over all tiles, one after the other, where the first was in vain.

    Attributes:
      is_needed: whether it was.
      begin: before the second: takes back what the first has added to results.
      stages: as in `Program.walk`.
    """

    is_needed: Callable[[], jax.Array]
    begin: Callable[[], None]
    stages: Stages


@dataclasses.dataclass(frozen=True)
class Program:
    """What a kernel is specialised for, and where its plan lies.

    Attributes:
      layout: tiles and lanes.
      steps: how much is done at once.
      dtype: of the operands of products.
      plan: `Layout.plan`.
      strip: which strip of an image the program works on.
      is_first: whether the program is the first of a set of images, which begins their sums.
      heads_left: heads from the program's first one on; None where none of its heads is missing.
      head_of_lane: ``[1, lanes]``; -1 where a block of lanes goes on behind the last head.
    """

    layout: Layout
    steps: Steps
    dtype: Any
    plan: Ref
    strip: Ints
    is_first: jax.Array
    heads_left: Any
    head_of_lane: jax.Array

    @classmethod
    def of(
        cls,
        layout: Layout,
        steps: Steps,
        dtype: Any,
        heads: int,
        plan: Ref,
        programs_of_set: int | None,
    ) -> Program:
        """A program of a kernel, inside of it.

        Args:
          layout: as the attribute, and so are the others but these.
          steps: how much is done at once.
          dtype: of the operands of products.
          heads: heads in all, of which the last block of lanes may have fewer.
          plan: `Layout.plan`.
          programs_of_set: programs for a set of images; None where there is one set.
        """
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, layout.lanes), 1)
        head, left = lane >> (layout.head_dim.bit_length() - 1), None
        if heads % layout.heads:
            left = heads - pl.program_id(0) * layout.heads
            head = jnp.where(head < left, head, -1)
        strip = pl.program_id(1) % layout.num_strips if layout.num_strips > 1 else 0
        turn = pl.program_id(1)
        is_first = (turn if programs_of_set is None else turn % programs_of_set) == 0
        return cls(layout, steps, dtype, plan, strip, is_first, left, head)

    def product(self, a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
        """See `product`."""
        return product(a, b, dims)

    def copy_keys(self, copy: Ref, x: jax.Array) -> None:
        """Copy a map into scratch memory, shifted; zeros around it and behind the last head."""
        layout = self.layout
        x = x.astype(jnp.float32)
        if self.heads_left is not None:
            own = (self.head_of_lane >= 0).reshape((1,) * (x.ndim - 1) + (-1,))
            x = jnp.where(own, x, jnp.zeros_like(x))
        before = layout.columns.shift
        after = layout.columns.columns - before - x.shape[-2]

        def zeros(count: int) -> list[jax.Array]:
            shape = *x.shape[:-2], count, x.shape[-1]
            return [jnp.zeros(shape, jnp.float32)] if count else []  # Mosaic has no empty vectors

        parts = [*zeros(before), x, *zeros(after)]
        copy[...] = jnp.concatenate(parts, axis=-2) if len(parts) > 1 else x

    def uncopied(self, copy: Ref) -> jax.Array:
        """The map that a copy is of."""
        first = self.layout.columns.shift
        return copy[..., first : first + self.layout.positions("keys")[-1], :]

    def slab(self, copy: Ref, tile: Tile) -> jax.Array:
        """The keys of a tile, ``[keys, lanes]``."""
        x = copy[tile.map, *tile.slab]
        return x.reshape(self.layout.keys, self.layout.lanes).astype(self.dtype)

    def by_head(self, x: jax.Array) -> jax.Array:
        """``[queries, lanes]`` once for each head, with zeros in the lanes of the others."""
        own = self.head_of_lane
        x = x.reshape(self.layout.queries, self.layout.lanes).astype(self.dtype)
        copies = [jnp.where(own == head, x, jnp.zeros_like(x)) for head in range(self.layout.heads)]
        return jnp.concatenate(copies, axis=0) if len(copies) > 1 else copies[0]

    def own_lanes(self, x: jax.Array) -> jax.Array:
        """The lanes of each head from its own rows of ``[heads * queries, lanes]``, as a tile."""
        n, layout = self.layout.queries, self.layout
        out = x[:n]
        for i in range(1, layout.heads):
            out = jnp.where(self.head_of_lane == i, x[i * n : (i + 1) * n], out)
        return out.reshape(*(axis.tile for axis in layout.blocks.axes), layout.lanes)

    def rows_beyond(self, tile: Tile, x: jax.Array, apart: int = 0) -> jax.Array:
        """A tile with zeros where it reaches beyond the map.

        Args:
          tile: the tile.
          x: ``[*tile, ...]``, after so many other dimensions.
          apart: how many.
        """
        layout = self.layout
        for axis, (first, length, tiled) in enumerate(
            zip(tile.first, layout.positions("queries"), layout.tiled, strict=True), start=apart
        ):
            if tiled > length:
                position = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
                x = jnp.where(position < length, x, jnp.zeros_like(x))
        return x

    def heads_beyond(self, x: jax.Array) -> jax.Array:
        """``[heads, ...]`` with zeros behind the last head."""
        if self.heads_left is None:
            return x
        head = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(head < self.heads_left, x, jnp.zeros_like(x))

    def locate(self, first_map: Ints, map_: Ints, number: Ints) -> Tile:
        """A tile of a map at hand, by its number among those of the map."""
        layout = self.layout
        axes = layout.blocks.axes
        if layout.groups > 1:
            number = (first_map + map_) * layout.tiles_of_group + number
        entry = self.strip * layout.num_tiles + number
        kind, *places = (
            self.plan[entry * (1 + 2 * len(axes)) + i] for i in range(1 + 2 * len(axes))
        )
        for last in (len(axes) - 1, -1):
            places[last] = pl.multiple_of(places[last], SUBLANES)
        first, starts = places[: len(axes)], places[len(axes) :]
        rows = [pl.ds(at, axis.tile) for at, axis in zip(first, axes, strict=True)]
        slab = [pl.ds(at, axis.halo) for at, axis in zip(starts, axes, strict=True)]
        image = 0 if layout.groups > 1 else first_map + map_
        return Tile(map_, image, kind, number, tuple(first), tuple(rows), tuple(slab))

    def add_to_slab(self, copy: Ref, tile: Tile, x: jax.Array) -> None:
        """Add ``[keys, lanes]`` to the keys of a tile."""
        sides = (axis.halo for axis in self.layout.blocks.axes)
        copy[tile.map, *tile.slab] += x.reshape(*sides, self.layout.lanes)

    def walk(
        self,
        stages: Stages,
        *,
        read: Sequence[Map] = (),
        copied: Sequence[Copies] = (),
        written: Sequence[Map] = (),
        summed: Sequence[Copies] = (),
        again: Again | None = None,
    ) -> None:
        """Call ``stages(first map, tiles)`` for all tiles, so many at a time.

        Args:
          stages: what is done with tiles side by side.
          read: maps that it reads by tiles.
          copied: maps of keys, whose copies it reads slabs of.
          written: maps that it writes by tiles.
          summed: maps of what it adds to slabs of their copies.
          again: a second walk, if there may be one.
        """
        count = self.steps.maps

        def maps_at(each_tiles: Callable[[Ints], None], first: Ints) -> None:
            for x in copied:
                for i in range(count):
                    self.copy_keys(x.copies.at[i], x.map.read_map(first + i))
            for x in summed:
                x.copies[...] = jnp.zeros_like(x.copies)
            for x in read:
                x.fetch(first, count)
            each_tiles(first)
            for x in written:
                x.store(first, count)
            for x in summed:
                for i in range(count):
                    total = self.uncopied(x.copies.at[i])
                    x.map.write_map(first + i, total if x.factor == 1 else total * x.factor)

        for x in (*read, *(x.map for x in copied)):
            x.open()
        maps = self.steps.images * self.layout.groups
        side_by_side = functools.partial(self.each_tiles, stages)
        self.each_step(functools.partial(maps_at, side_by_side), maps)
        if again is not None:
            one_by_one = functools.partial(self.each_tile, again.stages)

            @pl.when(again.is_needed())
            def _() -> None:
                again.begin()
                self.each_step(functools.partial(maps_at, one_by_one), maps)

        for x in (*written, *(x.map for x in summed)):
            x.close()

    def each_step(self, body: Callable[[Ints], None], maps: int) -> None:
        """Call ``body(first map)`` for all maps, so many at a time."""
        count = maps // self.steps.maps
        _loop(count, lambda i: body(i * self.steps.maps))

    def each_tiles(self, stages: Stages, first_map: Ints) -> None:
        """Call ``stages`` for all tiles of the maps at hand, so many at a time."""
        per_map, size = self.layout.tiles_of_group, self.steps.tiles

        def run(tiles: Sequence[tuple[int, Ints]]) -> None:
            stages(first_map, [self.locate(first_map, *tile) for tile in tiles])

        if self.steps.maps == 1:
            _loop(per_map // size, lambda i: run([(0, i * size + j) for j in range(size)]))
            every = [(0, j) for j in range(per_map // size * size, per_map)]
        else:
            # Several maps are at hand only where they have few tiles.
            every = [(m, j) for m in range(self.steps.maps) for j in range(per_map)]
        for i in range(0, len(every), size):
            run(every[i : i + size])

    def each_tile(self, stages: Stages, first_map: Ints) -> None:
        """As `each_tiles`, one at a time."""

        def of_map(i: Ints) -> None:
            _loop(
                self.layout.tiles_of_group,
                lambda j: stages(first_map, [self.locate(first_map, i, j)]),
            )

        _loop(self.steps.maps, of_map)


def _loop(count: int, body: Callable[[Ints], None]) -> None:
    if count <= 1:
        for i in range(count):
            body(i)  # no array: Mosaic does not lower stores at a constant one in a loop
        return

    def step(i: Ints, carry: tuple[()]) -> tuple[()]:
        body(i)
        return carry

    jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), step, ())
