"""Where the windows of a tile's queries begin in its slab, and how many slots there are."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from natjax.kernels.backends.mosaic_tpu.layout import SUBLANES, Layout, round_up
from natjax.kernels.plan.pattern import pattern_of


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of the queries of tiles.

    Slots are numbered row-major over the window. In a slab, those of a row of the window, along the
    last axis, are filled up to a multiple of 8, which is a vector's sublanes.

    Attributes:
      layout: tiles and slabs.
    """

    layout: Layout

    @property
    def size(self) -> tuple[int, ...]:
        """Slots along each axis."""
        return tuple(axis.kernel_size for axis in self.layout.windows)

    @property
    def filled(self) -> int:
        """Slots along the last axis, filled up."""
        return round_up(self.size[-1], SUBLANES)

    @property
    def num_slots(self) -> int:
        """Slots of a query."""
        return math.prod(self.size)

    @functools.cached_property
    def first(self) -> Int[np.ndarray, "kinds axes lanes"]:
        """Where the window of each query of each kind of tile begins in the slab, along each axis.

        Lanes are as those of logits: queries, once for each head.
        """
        axes = [axis.seen[:, 0].argmax(axis=2) for axis in pattern_of(self.layout.blocks).axes]
        kinds = np.indices([len(axis) for axis in axes]).reshape(len(axes), -1, 1)
        queries = np.indices([axis.shape[1] for axis in axes]).reshape(len(axes), 1, -1)
        first = [axis[kind, query] for axis, kind, query in zip(axes, kinds, queries, strict=True)]
        return np.tile(np.stack(first, axis=1), self.layout.heads).astype(np.int32)

    @property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Along each axis, all places in a slab where windows begin."""
        return tuple(tuple(map(int, np.unique(x))) for x in self.first.swapaxes(0, 1))

    @property
    def lead(self) -> int:
        """Columns in front of a spread window: as far as windows begin in slabs."""
        return round_up(max(self.starts[-1]), SUBLANES)

    @property
    def spread(self) -> tuple[int, ...]:
        """Shape of windows of which each slab can be read that has its window at some place."""
        behind = max(self.filled, self.layout.columns.halo)
        return *self.size[:-1], self.lead + behind

    @property
    def dense(self) -> int:
        """Sublanes for slots one after the other, with room for what fills up the last row."""
        return round_up(self.num_slots - self.size[-1] + self.filled, SUBLANES)
