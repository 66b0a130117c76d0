"""How arrays of one naming become arrays of ours, and back.

A layout takes a tuple of arrays to a tuple of arrays, as views wherever it can: nothing is computed
but copies, so that going there and back gives the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

Arrays = tuple[np.ndarray, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement and its inverse.

    Attributes:
      name: for tables.
      to_ours: from the source's arrays to ours.
      to_theirs: the inverse.
    """

    name: str
    to_ours: Callable[[Arrays], Arrays]
    to_theirs: Callable[[Arrays], Arrays]

    def their_shapes(self, ours: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Shapes of the source's arrays, from those of ours."""
        return tuple(x.shape for x in self.to_theirs(tuple(map(_stand_in, ours))))


def _stand_in(shape: Shape) -> np.ndarray:
    """An array of a shape that takes one byte."""
    return np.broadcast_to(np.zeros((), np.int8), shape)


def _same(arrays: Arrays) -> Arrays:
    return arrays


def _permuted(axes: tuple[int, ...]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: tuple(x.transpose(axes) for x in arrays)


def _split(axis: int) -> Callable[[Arrays], Arrays]:
    return lambda arrays: tuple(np.split(arrays[0], 3, axis))


# The same in both.
SAME = Layout("as is", _same, _same)
# A linear layer: [out, in] and [in, out].
LINEAR = Layout("transposed", _permuted((1, 0)), _permuted((1, 0)))
# A convolution: [out, in, height, width] and [height, width, in, out].
CONV = Layout("OIHW to HWIO", _permuted((2, 3, 1, 0)), _permuted((3, 2, 0, 1)))
# Query, key and value, three linear layers [C, C], and one [C, 3C].
QKV_KERNEL = Layout(
    "joined, transposed",
    lambda arrays: (np.concatenate(arrays, axis=0).T,),
    lambda arrays: tuple(x.T for x in np.split(arrays[0], 3, axis=1)),
)
QKV_BIAS = Layout("joined", lambda arrays: (np.concatenate(arrays),), _split(0))
# Rows of one matrix, and one vector each.
ROWS = Layout("rows apart", lambda arrays: tuple(arrays[0]), lambda arrays: (np.stack(arrays),))
