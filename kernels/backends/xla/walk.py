"""A walk over the tiles of arrays: read boxes, compute, add to boxes; with all derivatives.

In each step of a walk every input is read at a *box*, a function is called on what was read, and
each of its results is added to an output at a box. Boxes of one array may overlap, as the keys of
neighboring tiles do. Nothing is stored for each step.

The derivative of such a loop that JAX would take adds an array of full size in every step, for
each input that boxes are read of. But the transpose of reading a box is adding to it. So the
tangents and the cotangents of a walk are walks too, whose functions are the derivatives that JAX
takes of the function of a step. Derivatives of any order and in either mode follow, and the
function is computed anew in each rather than stored. Where results make the cotangents cheaper,
the function for them can be given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Int

from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.linear import linear_call
from natjax.kernels.sharding.partitioning import align_varying

type Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False, slots=True)
class Boxes:
    """Where an array is read, or added to: one box for each tile.

    Attributes:
      sizes: size along each dimension; None for all of it.
      starts: first index along each dimension; None where all tiles have the whole array.
      is_partition: whether each entry of the array lies in the box of exactly one tile.
    """

    sizes: tuple[int | None, ...]
    starts: Int[np.ndarray, "tiles dims"] | None
    is_partition: bool = False

    @classmethod
    def whole(cls, ndim: int) -> Boxes:
        """All of an array, for every tile."""
        return cls((None,) * ndim, None)

    def read(self, x: Array, start: Array | np.ndarray) -> Array:
        """The box of an array with a start."""
        if self.starts is None:
            return x
        return jax.lax.dynamic_slice(x, list(start), self._shape(x), allow_negative_indices=False)

    def add(self, x: Array, box: Array, start: Array | np.ndarray) -> Array:
        """Add to the box of an array with a start."""
        if self.starts is None:
            return x + box
        if not self.is_partition:
            box = box + self.read(x, start)
        box = box.astype(x.dtype)
        return jax.lax.dynamic_update_slice(x, box, list(start), allow_negative_indices=False)

    def _shape(self, x: Array) -> tuple[Any, ...]:
        return tuple(n if s is None else s for s, n in zip(self.sizes, x.shape, strict=True))


@dataclasses.dataclass(frozen=True, eq=False, repr=False, slots=True)
class Walk:
    """A loop over tiles.

    Attributes:
      function: ``(tile, *boxes) -> results``, with the number of the tile. It gets boxes of reals
        in the dtype of accumulation, and may close over no JAX array.
      reads: boxes of each input.
      writes: boxes of each output.
      outputs: shape and dtype of each output, which is zero where nothing is added.
      tiles: their number.
      at_once: tiles in a step, a divisor of their number.
      pull: ``(tile, inputs, results, cotangents of results) -> cotangents of inputs``, of boxes,
        None for what is no real; None to derive it.
    """

    function: Callable[..., Arrays]
    reads: tuple[Boxes, ...]
    writes: tuple[Boxes, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    tiles: int
    at_once: int
    pull: Callable[[Array, Arrays, Arrays, Arrays], Sequence[Array | None]] | None = None

    def __call__(self, *arrays: Array) -> Arrays:
        """Run the walk on its inputs."""
        return _run(self, *align_varying(*arrays))

    def tangents(self, moving: Sequence[int]) -> Walk:
        """The walk that takes the inputs, and tangents of some, to tangents of the outputs."""
        inputs = len(self.reads)

        def push(tile: Array, *boxes: Array) -> Arrays:
            function, primals = self._of_moving(tile, boxes[:inputs], moving)
            return jax.jvp(function, primals, boxes[inputs:])[1]

        reads = (*self.reads, *(self.reads[i] for i in moving))
        return dataclasses.replace(self, function=push, reads=reads, pull=None)

    def cotangents(self, moving: Sequence[int], arrays: Arrays) -> Walk:
        """The walk that takes the inputs, results and cotangents of these to those of some inputs.

        Args:
          moving: numbers of those inputs.
          arrays: the inputs, for their shapes and dtypes.
        """
        inputs, results = len(self.reads), len(self.writes)

        def pull(tile: Array, *boxes: Array) -> Arrays:
            read, made = boxes[:inputs], boxes[inputs : inputs + results]
            if self.pull is not None:
                pulled = self.pull(tile, read, made, boxes[inputs + results :])
                return tuple(pulled[i] for i in moving)
            function, primals = self._of_moving(tile, read, moving)
            return jax.vjp(function, *primals)[1](boxes[inputs + results :])

        return dataclasses.replace(
            self,
            function=pull,
            reads=(*self.reads, *self.writes, *self.writes),
            writes=tuple(self.reads[i] for i in moving),
            outputs=tuple(jax.ShapeDtypeStruct(arrays[i].shape, arrays[i].dtype) for i in moving),
            pull=None,
        )

    def _of_moving(
        self, tile: Array, boxes: Arrays, moving: Sequence[int]
    ) -> tuple[Callable[..., Arrays], Arrays]:
        """The function of the boxes that move alone, and those."""

        def function(*moved: Array) -> Arrays:
            every = list(boxes)
            for i, box in zip(moving, moved, strict=True):
                every[i] = box
            return self.function(tile, *every)

        return function, tuple(boxes[i] for i in moving)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(walk: Walk, *arrays: Array) -> Arrays:
    zeros = [
        jnp.zeros(x.shape, x.dtype if where.is_partition else accumulation_dtype(x.dtype))
        for x, where in zip(walk.outputs, walk.writes, strict=True)
    ]
    # Inside `jax.shard_map`, what a loop starts from varies over devices as what it adds does.
    outputs = align_varying(*zeros, *arrays)[: len(zeros)]
    numbers = np.arange(walk.tiles, dtype=np.int32).reshape(-1, walk.at_once)

    def starts(boxes: Boxes) -> np.ndarray:
        table = np.zeros((walk.tiles, 0)) if boxes.starts is None else boxes.starts
        return table.astype(np.int32).reshape(*numbers.shape, -1)

    step = functools.partial(_step, walk, arrays)
    xs = numbers, [starts(x) for x in walk.reads], [starts(x) for x in walk.writes]
    if len(numbers) == 1:
        outputs, _ = step(outputs, jax.tree.map(lambda x: x[0], xs))
    else:
        outputs, _ = jax.lax.scan(step, outputs, xs)
    return tuple(x.astype(like.dtype) for x, like in zip(outputs, walk.outputs, strict=True))


def _step(walk: Walk, arrays: Arrays, outputs: Arrays, xs: Any) -> tuple[Arrays, None]:
    """Several tiles: read their boxes, compute, add."""
    numbers, read_starts, write_starts = xs
    boxes = []
    for x, where, starts in zip(arrays, walk.reads, read_starts, strict=True):
        if where.starts is not None:
            # A gather of whole boxes: of boxes that are stacked XLA makes slow code on a CPU.
            x = jax.vmap(functools.partial(where.read, x))(starts)
        boxes.append(_raised(x))
    in_axes = [None if where.starts is None else 0 for where in walk.reads]
    results = jax.vmap(walk.function, in_axes=(0, *in_axes))(jnp.asarray(numbers), *boxes)
    added = []
    for x, where, starts, result in zip(outputs, walk.writes, write_starts, results, strict=True):
        if where.starts is None:
            x += result.sum(axis=0)
        else:
            for start, box in zip(starts, result, strict=True):
                x = where.add(x, box, start)
        added.append(x)
    return tuple(added), None


def _raised(x: Array) -> Array:
    """In the dtype of accumulation; integers stay."""
    is_real = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(accumulation_dtype(x.dtype)) if is_real else x


def _tangent_rule(walk: Walk, primals: Arrays, tangents: Any) -> Any:
    results = _run(walk, *primals)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

    def push(constants: Arrays, tangents: Arrays) -> Arrays:
        return _run(walk.tangents(moving), *constants[: len(primals)], *tangents)

    def pull(constants: Arrays, cotangents: Arrays) -> Arrays:
        backward = walk.cotangents(moving, constants[: len(primals)])
        return _run(backward, *constants, *cotangents)

    constants = (*primals, *results)
    moved = linear_call(push, pull, constants, [tangents[i] for i in moving], like=results)
    return results, moved


_run.defjvp(_tangent_rule, symbolic_zeros=True)
