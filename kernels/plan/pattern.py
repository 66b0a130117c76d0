"""What the blocks of a plan look like, and the table of what is added to their logits.

Bias and mask are one thing, what to *add* to the logits. Blocks look alike but at the borders, so a
small table holds every block there is; a kernel loads the one it needs as it loads keys.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.kernels.plan.blocks import AxisBlocks, Blocks

# Added to hidden logits: finite, so that no difference of them is nan.
HIDDEN = -1e30
# The most entries of one axis of a table while it is planned.
_LARGEST_AXIS = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPattern:
    """What the blocks along an axis look like: ``c`` chunks of ``s`` columns for ``t`` rows.

    Attributes:
      kind: which of ``S`` kinds each tile is; tiles of one kind have the same blocks.
      seen: who sees whom, for each kind and chunk.
      bias: index of the bias of the axis, in range where they do.
    """

    kind: Int[np.ndarray, "A"]
    seen: Bool[np.ndarray, "S c t s"]
    bias: Int[np.ndarray, "S c t s"]


def _axis_pattern(blocks: AxisBlocks) -> AxisPattern:
    """What all blocks along the axis look like."""
    group, first, start = blocks.locate(np.arange(blocks.num_tiles))
    row = first[:, None] + np.arange(blocks.tile)
    column = start[:, None] + np.arange(blocks.num_chunks * blocks.chunk)
    row, column, group = row[:, :, None], column[:, None, :], group[:, None, None]
    seen = blocks.is_neighbor(row, column, group)
    # Tiles at one distance from their slab have the same biases.
    signature = np.concatenate([seen.reshape(len(seen), -1), (start - first)[:, None]], axis=1)
    _, examples, kind = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    bias = np.where(seen, blocks.distance(row, column), 0)

    def by_chunk(x: np.ndarray) -> np.ndarray:
        x = x[examples].reshape(-1, blocks.tile, blocks.num_chunks, blocks.chunk)
        return x.transpose(0, 2, 1, 3)

    return AxisPattern(kind.reshape(-1), by_chunk(seen), by_chunk(bias))


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """What the blocks of a layout look like; tiles of one kind look the same.

    Attributes:
      axes: the same along each axis.
      bias_shape: shape of one head's biases.
    """

    axes: tuple[AxisPattern, ...]
    bias_shape: tuple[int, ...]

    @property
    def num_kinds(self) -> int:
        """Kinds of tiles."""
        return math.prod(len(axis.seen) for axis in self.axes)

    @functools.cached_property
    def kind(self) -> Int[np.ndarray, "tiles"]:
        """Kind of each tile, by number."""
        kinds = np.zeros((), np.int32)
        for axis in self.axes:
            kinds = kinds[..., None] * len(axis.seen) + axis.kind.astype(np.int32)
        return kinds.reshape(-1)

    @functools.cached_property
    def is_whole(self) -> Bool[np.ndarray, "kinds chunks"]:
        """Which chunks every row of a tile sees whole, and that so need no mask."""
        return self._of_chunks([axis.seen.all(axis=(2, 3)) for axis in self.axes])

    @functools.cached_property
    def is_hidden(self) -> Bool[np.ndarray, "kinds chunks"]:
        """Which chunks no row of a tile sees anything of, and that can so be skipped."""
        return ~self._of_chunks([axis.seen.any(axis=(2, 3)) for axis in self.axes])

    @functools.cached_property
    def has_columns(self) -> Bool[np.ndarray, "kinds chunks t"]:
        """Which rows of a block see any of its columns."""
        return functools.reduce(np.kron, [axis.seen.any(axis=3) for axis in self.axes])

    def _of_chunks(self, by_axis: list[np.ndarray]) -> Bool[np.ndarray, "kinds chunks"]:
        """What holds for a block is what holds along every axis."""
        result = np.ones((1, 1), bool)
        for x in by_axis:
            result = np.kron(result, x)
        return result

    def table(
        self, rpb: Float[Array, "N *R"] | None, hidden: float, factor: float
    ) -> Float[Array, "N kinds chunks t s"]:
        """What to add to the logits: the bias times a factor, and ``hidden`` for the unseen.

        Without a bias there is one head.
        """
        n = len(self.axes)
        masks = (self._spread(axis.seen, i) for i, axis in enumerate(self.axes))
        seen = functools.reduce(np.logical_and, masks)
        if rpb is None:
            values = jnp.zeros((1, *seen.shape), jnp.float32)
        else:
            index = (self._spread(axis.bias, i) for i, axis in enumerate(self.axes))
            values = factor * rpb.astype(jnp.float32)[:, *index]
        table = jnp.where(seen[None], values, jnp.float32(hidden))
        order = (1 + axis * 4 + part for part in range(4) for axis in range(n))
        return self._merge(table.transpose(0, *order))

    def bias_gradient(self, blocks: Float[Array, "N kinds chunks t s"]) -> Float[Array, "N *R"]:
        """The transpose of `table`: sum of the blocks' entries by the bias that was added."""
        n = len(self.axes)
        shapes = [axis.seen.shape for axis in self.axes]
        x = blocks.reshape(-1, *(shape[part] for part in range(4) for shape in shapes))
        x = x.transpose(0, *(1 + part * n + axis for axis in range(n) for part in range(4)))
        for axis, size in zip(self.axes, self.bias_shape, strict=True):
            # Takes the foremost axis' four dimensions away and appends one for its biases.
            index = np.where(axis.seen, axis.bias, -1)
            one_hot = jax.nn.one_hot(index, size, dtype=x.dtype)
            x = jnp.tensordot(x, one_hot, axes=((1, 2, 3, 4), (0, 1, 2, 3)), precision="highest")
        return x

    def _spread(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Put the four dimensions of one axis where they broadcast with those of the others."""
        n = len(self.axes)
        return x.reshape((1,) * (4 * axis) + x.shape + (1,) * (4 * (n - axis - 1)))

    def _merge(self, x: Array) -> Array:
        n = len(self.axes)
        shape = [math.prod(x.shape[1 + part * n : 1 + part * n + n]) for part in range(4)]
        return x.reshape(x.shape[0], *shape)


@functools.lru_cache(64)
def pattern_of(blocks: Blocks) -> Pattern:
    """What the blocks of a plan look like."""
    sizes = tuple(2 * axis.window.kernel_size - 1 for axis in blocks.axes)
    return Pattern(tuple(map(_axis_pattern, blocks.axes)), sizes)


@functools.lru_cache(256)
def table_entries(blocks: Blocks) -> int:
    """Entries of a table of blocks for one head; more than any limit if not worth counting."""
    for axis in blocks.axes:
        if axis.num_tiles * axis.tile * axis.num_chunks * axis.chunk > _LARGEST_AXIS:
            return 2**62
    kinds = pattern_of(blocks).num_kinds
    return kinds * blocks.num_chunks * blocks.num_rows * blocks.num_columns
