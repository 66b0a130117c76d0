"""From a tile's logits by the keys of its slab to those by the slots of its windows, and back.

By keys they lie transposed, with heads and queries in the lanes. The window of each lane begins at
a place of its own in the slab, of which there are few along an axis. So what belongs to one place
is selected in the lanes whose windows begin there, one axis after the other; along the last one,
which is in the sublanes, from scratch memory, where a read may begin at any sublane. Then slots are
put one after the other, without gaps, and transposed into the lanes, where users have them.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from natjax.kernels.backends.mosaic_tpu.program import Tile
from natjax.kernels.backends.mosaic_tpu.unfused.windows import Windows

type Ref = Any


@dataclasses.dataclass(frozen=True)
class Slots:
    """Window slots in a kernel.

    Attributes:
      windows: of its tiles.
      first: `Windows.first`.
      spread: scratch memory for a window `Windows.spread` of each tile side by side.
      dense: the same for slots without gaps, `Windows.dense`.
    """

    windows: Windows
    first: Ref
    spread: Ref
    dense: Ref

    def open(self) -> None:
        """Before any slots are put into slabs: zeros around windows."""
        self.spread[...] = jnp.zeros_like(self.spread)

    def of_slab(self, turn: int, tile: Tile, x: jax.Array) -> jax.Array:
        """The slots ``[heads, *tile, slots]`` of a slab ``[keys, lanes]``.

        Args:
          turn: number of the tile among those side by side.
          tile: the tile.
          x: what there is of each key; slots without one get anything.
        """
        windows, lanes = self.windows, x.shape[-1]
        x = x.reshape(*(axis.halo for axis in windows.layout.blocks.axes), lanes)
        last = x.ndim - 2
        for axis in range(last):
            x = self._from_places(tile, axis, x)
        self.spread[turn, ..., : x.shape[-2], :] = x
        size = windows.filled
        at, result = self._places(tile, last, x.ndim), None
        for start in windows.starts[-1]:
            piece = self.spread[turn, ..., pl.ds(start, size), :]
            result = piece if result is None else jnp.where(at == start, piece, result)
        assert result is not None
        for number, place in enumerate(self._leading()):
            # What fills up one row of the window is overwritten by the next.
            rows = pl.ds(number * windows.size[-1], size)
            self.dense[turn, rows, :] = result[place]
        x = jnp.transpose(self.dense[turn])[:, : windows.num_slots]
        return x.reshape(windows.layout.heads, *self._tile, windows.num_slots)

    def to_slab(self, turn: int, tile: Tile, x: jax.Array) -> jax.Array:
        """The slab ``[keys, lanes]`` of slots; zeros outside of windows.

        Args:
          turn: number of the tile among those side by side.
          tile: the tile.
          x: ``[heads, *tile, slots]``, what there is of each slot.
        """
        windows, lanes = self.windows, self.windows.layout.logit_lanes
        halo = [axis.halo for axis in windows.layout.blocks.axes]
        x = jnp.transpose(x.reshape(lanes, windows.num_slots))
        self.dense[turn, : windows.num_slots, :] = x
        size = windows.filled
        of_window = jax.lax.broadcasted_iota(jnp.int32, (size, lanes), 0) < windows.size[-1]
        for number, place in enumerate(self._leading()):
            piece = self.dense[turn, pl.ds(number * windows.size[-1], size), :]
            piece = jnp.where(of_window, piece, jnp.zeros_like(piece))
            self.spread[turn, *place, pl.ds(windows.lead, size), :] = piece
        last = len(halo) - 1
        at, result = self._places(tile, last, len(halo) + 1), None
        for start in windows.starts[-1]:
            piece = self.spread[turn, ..., pl.ds(windows.lead - start, halo[-1]), :]
            result = piece if result is None else jnp.where(at == start, piece, result)
        assert result is not None
        for axis in reversed(range(last)):
            result = self._to_places(tile, axis, result, halo[axis])
        return result.reshape(windows.layout.keys, lanes)

    @property
    def _tile(self) -> tuple[int, ...]:
        return tuple(axis.tile for axis in self.windows.layout.blocks.axes)

    def _leading(self) -> itertools.product[tuple[int, ...]]:
        """The rows of a window, in order."""
        return itertools.product(*map(range, self.windows.size[:-1]))

    def _from_places(self, tile: Tile, axis: int, x: jax.Array) -> jax.Array:
        """Slots along an axis of what has positions of the slab there."""
        at, slots = self._places(tile, axis, x.ndim - 1), []
        for slot in range(self.windows.size[axis]):
            result = jnp.zeros_like(_along(x, axis, 0))
            for start in self.windows.starts[axis]:
                # Beyond the slab there are only slots without a key.
                if start + slot < x.shape[axis]:
                    result = jnp.where(at == start, _along(x, axis, start + slot), result)
            slots.append(result)
        return jnp.stack(slots, axis)

    def _to_places(self, tile: Tile, axis: int, x: jax.Array, halo: int) -> jax.Array:
        """Positions of the slab along an axis of what has slots there."""
        at, positions = self._places(tile, axis, x.ndim - 1), []
        for position in range(halo):
            result = jnp.zeros_like(_along(x, axis, 0))
            for start in self.windows.starts[axis]:
                if 0 <= position - start < x.shape[axis]:
                    result = jnp.where(at == start, _along(x, axis, position - start), result)
            positions.append(result)
        return jnp.stack(positions, axis)

    def _places(self, tile: Tile, axis: int, ndim: int) -> jax.Array:
        """Where windows begin along an axis, ``[lanes]`` after dimensions to broadcast over."""
        at = self.first[tile.kind, pl.ds(axis, 1), :]
        return at.reshape((1,) * (ndim - 1) + (-1,))


def _along(x: jax.Array, axis: int, index: int) -> jax.Array:
    return x[(slice(None),) * axis + (index,)]
