"""From a tile's logits by the keys of its slab to those by the slots of its windows, and back.

Both lie transposed, with heads and queries in the lanes. The window of each lane begins at a place
of its own in the slab, of which there are few along an axis. So what belongs to one place is
selected in the lanes whose windows begin there, one axis after the other; along the last one, which
is in the sublanes, from scratch memory, where a read may begin at any sublane.
"""

from __future__ import annotations

import dataclasses
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
      scratch: for each tile side by side, a window `Windows.spread`.
    """

    windows: Windows
    first: Ref
    scratch: Ref

    def open(self) -> None:
        """Before any slots are put into slabs: zeros around windows."""
        self.scratch[...] = jnp.zeros_like(self.scratch)

    def of_slab(self, turn: int, tile: Tile, x: jax.Array) -> jax.Array:
        """The slots ``[slots, lanes]`` of a slab ``[keys, lanes]``; anything where there is no key.

        Args:
          turn: number of the tile among those side by side.
          tile: the tile.
          x: what there is of each key.
        """
        windows, lanes = self.windows, x.shape[-1]
        x = x.reshape(*(axis.halo for axis in windows.layout.blocks.axes), lanes)
        last = x.ndim - 2
        for axis in range(last):
            x = self._from_places(tile, axis, x)
        self.scratch[turn, ..., : x.shape[-2], :] = x
        size = windows.filled[-1]
        at, result = self._places(tile, last, x.ndim), None
        for start in windows.starts[-1]:
            piece = self.scratch[turn, ..., pl.ds(start, size), :]
            result = piece if result is None else jnp.where(at == start, piece, result)
        assert result is not None
        return result.reshape(windows.num_slots, lanes)

    def to_slab(self, turn: int, tile: Tile, x: jax.Array) -> jax.Array:
        """The slab ``[keys, lanes]`` of slots ``[slots, lanes]``; zeros outside of windows.

        Args:
          turn: number of the tile among those side by side.
          tile: the tile.
          x: what there is of each slot; zeros in those that fill up.
        """
        windows, lanes = self.windows, x.shape[-1]
        halo = [axis.halo for axis in windows.layout.blocks.axes]
        x = x.reshape(*windows.filled, lanes)
        self.scratch[turn, ..., pl.ds(windows.lead, windows.filled[-1]), :] = x
        last = x.ndim - 2
        at, result = self._places(tile, last, x.ndim), None
        for start in windows.starts[-1]:
            piece = self.scratch[turn, ..., pl.ds(windows.lead - start, halo[-1]), :]
            result = piece if result is None else jnp.where(at == start, piece, result)
        assert result is not None
        for axis in reversed(range(last)):
            result = self._to_places(tile, axis, result, halo[axis])
        return result.reshape(windows.layout.keys, lanes)

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
