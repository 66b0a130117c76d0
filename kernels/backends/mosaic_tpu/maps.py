"""How the kernels read and write maps in memory: whole images, or the dilation groups of one.

A kernel has one or several images in memory. Without dilation, a map is an image. With it, maps are
the interleaved groups of one image: that is raised to float32, since only 32-bit numbers are read
with a stride, and each group is copied out of it and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.layout import LANES, Layout
from natjax.kernels.plan.blocks import Rows, unravel

type Ref = Any
type Ints = Any


@dataclasses.dataclass(frozen=True)
class Images:
    """An argument or result whose maps are the images of its block.

    Attributes:
      layout: of the maps.
      of: whether they are maps of queries or of keys.
      block: ``[images, *X, lanes]``; tiles may reach beyond the tokens, where there is anything.
        Where heads do not share the lanes, ``[images, heads, *X, lanes]``, and so are maps and
        tiles.
      apart: dimensions between images and tokens: 1 for heads, or 0.
    """

    layout: Layout
    of: Rows
    block: Ref
    apart: int = 0

    def open(self) -> None:
        """Before maps are read."""

    def fetch(self, first: Ints, count: int) -> None:
        """Before tiles of maps are read, the first of which is ``first``."""

    def read_map(self, index: Ints) -> jax.Array:
        """A map, ``[*X, lanes]``."""
        return self.block[index, *self._all, *_extent(self.layout.tokens_of_strip(self.of))]

    def read_tile(self, first: Ints, i: Ints, rows: tuple[Any, ...]) -> jax.Array:
        """A tile of the ``i``-th map at hand, ``[*tile, lanes]``."""
        return self.block[first + i, *self._all, *rows]

    def write_map(self, index: Ints, values: jax.Array) -> None:
        """Write a whole map."""
        tokens = _extent(self.layout.tokens_of_strip(self.of))
        self.block[index, *self._all, *tokens] = values.astype(self.block.dtype)

    def write_tile(self, first: Ints, i: Ints, rows: tuple[Any, ...], values: jax.Array) -> None:
        """Write a tile of the ``i``-th map at hand."""
        self.block[first + i, *self._all, *rows] = values.astype(self.block.dtype)

    def store(self, first: Ints, count: int) -> None:
        """After tiles of maps were written."""

    def close(self) -> None:
        """After all maps were written."""

    @property
    def _all(self) -> tuple[slice, ...]:
        return (slice(None),) * self.apart


@dataclasses.dataclass(frozen=True)
class Groups:
    """An argument or result whose maps are the dilation groups of its block's one image.

    Attributes:
      layout: of the maps.
      of: whether they are maps of queries or of keys.
      block: ``[1, *X, lanes]``; or ``[1, heads, *X, lanes]``, as in `Images`.
      raised: the image in float32, with all groups as long as the longest: for each 128 of its
        lanes, since no more are read with a stride.
      maps: the groups at hand, ``[maps, *X, lanes]``; None where they are only read whole.
      apart: as in `Images`.
    """

    layout: Layout
    of: Rows
    block: Ref
    raised: tuple[Ref, ...]
    maps: Ref = None
    apart: int = 0

    def open(self) -> None:
        """Raise the image; zeros where a group is shorter than the longest."""
        for x, lanes in self._by_lanes():
            part = self.block[0, ..., lanes].astype(jnp.float32)
            if part.shape != x.shape:
                x[...] = jnp.zeros_like(x)
            x[*self._image] = part
        if self.maps is not None:
            self.maps[...] = jnp.zeros_like(self.maps)

    def fetch(self, first: Ints, count: int) -> None:
        """Copy groups out of the image."""
        for i in range(count):
            self.maps[i, *self._all, *self._positions] = self.read_map(first + i)

    def read_map(self, index: Ints) -> jax.Array:
        """A group, ``[*X, lanes]``."""
        parts = [x[*self._group(index)] for x in self.raised]
        return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]

    def read_tile(self, first: Ints, i: Ints, rows: tuple[Any, ...]) -> jax.Array:
        """A tile of the ``i``-th group at hand; zeros beyond the longest group."""
        del first
        return self.maps[i, *self._all, *rows]

    def write_map(self, index: Ints, values: jax.Array) -> None:
        """Write a whole group."""
        for x, lanes in self._by_lanes():
            x[*self._group(index)] = values[..., lanes]

    def write_tile(self, first: Ints, i: Ints, rows: tuple[Any, ...], values: jax.Array) -> None:
        """Write a tile of the ``i``-th group at hand."""
        del first
        self.maps[i, *self._all, *rows] = values

    def store(self, first: Ints, count: int) -> None:
        """Copy the groups at hand back into the image."""
        for i in range(count):
            self.write_map(first + i, self.maps[i, *self._all, *self._positions])

    def close(self) -> None:
        """Write the image."""
        for x, lanes in self._by_lanes():
            self.block[0, ..., lanes] = x[*self._image].astype(self.block.dtype)

    def _group(self, index: Ints) -> tuple[Any, ...]:
        groups = unravel(index, self.layout.dilation)
        steps = zip(groups, self.layout.positions(self.of), self.layout.dilation, strict=True)
        return *self._all, *(pl.ds(group, size, stride=step) for group, size, step in steps)

    @property
    def _all(self) -> tuple[slice, ...]:
        return (slice(None),) * self.apart

    @property
    def _image(self) -> tuple[slice, ...]:
        return *self._all, *_extent(self.layout.tokens_of_strip(self.of))

    def _by_lanes(self) -> Iterator[tuple[Ref, slice]]:
        """The parts of `raised`, and of which lanes they are."""
        for i, x in enumerate(self.raised):
            yield x, slice(i * LANES, i * LANES + x.shape[-1])

    @property
    def _positions(self) -> tuple[slice, ...]:
        return _extent(self.layout.positions(self.of))


def _extent(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(size) for size in sizes)
