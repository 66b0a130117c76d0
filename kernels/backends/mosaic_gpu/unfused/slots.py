"""Where the window slots of a block's rows and columns are in an array of slots.

Slots of an image lie in the order of queries, heads and slots. That of a key in the window of a
query is what the key has less what the query has (`plan.slots.slot_parts`), so a place in the array
is a number of the query plus one of the key.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Int

from natjax.kernels.backends.mosaic_gpu import registers
from natjax.kernels.backends.mosaic_gpu.config import GROUP_ROWS
from natjax.kernels.backends.mosaic_gpu.program import BLOCK, OF_ROWS, Chunk, Ints, Ref
from natjax.kernels.backends.mosaic_gpu.unfused.scattered import NOWHERE
from natjax.kernels.backends.mosaic_gpu.work import Work
from natjax.kernels.neighborhood import Neighborhood
from natjax.kernels.plan.slots import slot_parts


def parts_of_tokens(
    neighborhood: Neighborhood, heads: int
) -> tuple[Int[np.ndarray, "1 T 1"], Int[np.ndarray, "1 T 1"]]:
    """What each query and each key adds to a place in the slots of an image, of the first head."""
    queries, keys = slot_parts(neighborhood)
    begins = np.arange(len(queries)) * heads * neighborhood.num_neighbors - queries
    return begins[None, :, None].astype(np.int32), keys[None, :, None].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Slots:
    """The slots of a warpgroup's rows of a tile.

    Attributes:
      work: the warpgroup and the tile.
    """

    work: Work

    def of_rows(self, parts: Ref) -> jax.Array:
        """What the rows add, of the first head, in the order of tiles."""
        own = parts.at[self.work.place.tile, pl.ds(self.work.warpgroup * GROUP_ROWS, GROUP_ROWS)]
        return plgpu.load(own, layout=OF_ROWS, optimized=False)

    @property
    def count(self) -> int:
        """Slots of a query."""
        return math.prod(self._sizes)

    def of_head(self, head: Ints) -> Ints:
        """What a query head adds."""
        return head * self.count

    def of_chunk(self, rows: jax.Array, head: Ints, chunk: Chunk) -> jax.Array:
        """The places of a block whose rows are queries, even of those that are not seen."""
        shape = (GROUP_ROWS, self.work.program.columns)
        column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=BLOCK)
        begin, within = self.of_head(head), jnp.zeros_like(column)
        sides = self.work.program.layout.chunk
        for axis, size in enumerate(self._sizes):
            # Columns are counted row-major in a chunk whose sides are powers of two.
            beyond = math.prod(sides[axis + 1 :]).bit_length() - 1
            along = (column >> beyond) & (sides[axis] - 1)
            within = within * size + along
        first = 0
        for size, start in zip(self._sizes, chunk.start, strict=True):
            first = first * size + start
        return registers.across(rows + (begin + first), self.work.program.columns) + within

    def seen(self, places: jax.Array, chunk: Chunk) -> jax.Array:
        """Places, and `NOWHERE` for rows and columns that do not see one another."""
        own = self.work
        return own.penalty.hide(places, NOWHERE, own.place, chunk, own.warpgroup)

    @property
    def _sizes(self) -> list[int]:
        """Slots along each axis."""
        return [window.kernel_size for window in self.work.program.layout.windows]
