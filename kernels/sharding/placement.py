"""Which mesh axes the batch and the heads of a call are split over, as it is traced.

Compilers that partition kernels find that out for themselves. The one for TPUs does not, so there
kernels are mapped over the devices of a mesh when they are traced (`mapped`), and somebody has to
say how: the types of arrays do if the axes of the mesh are explicit, the arrays themselves if they
are at hand, and otherwise the user, by `split`. What is left open is taken for axes that the batch
is split over, as far as they divide it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

type Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """What is known of a mesh.

    Attributes:
      batch: mesh axes that the batch is split over.
      heads: mesh axes that the heads are split over.
      known: these, and mesh axes over which neither is.
    """

    batch: Names = ()
    heads: Names = ()
    known: frozenset[str] = frozenset()

    def over(self, mesh: Any, batch: int, heads: int, sets: int = 1) -> tuple[Names, Names, Names]:
        """The axes of a mesh that batch, heads and sets of so many entries are split over.

        Those of which nothing is known split the batch. None does that cannot; sets are split by
        those for the batch that its entries are too few for.

        Raises:
          ValueError: the mesh has no axis of a name that was given.
        """
        if unknown := sorted({*self.batch, *self.heads} - set(mesh.axis_names)):
            raise ValueError(
                f"the axes of natjax.sharding.split must be axes of the mesh, {mesh.axis_names}; "
                f"got {unknown}"
            )
        free = free_axes(mesh)
        rest = (name for name in free if name not in self.known)
        wanted = [name for name in (*self.batch, *rest) if name in free]
        of_batch = _dividing(mesh, wanted, batch)
        return (
            of_batch,
            _dividing(mesh, (name for name in self.heads if name in free), heads),
            _dividing(mesh, (name for name in wanted if name not in of_batch), sets),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where the arrays of a call are.

    Attributes:
      mesh: the mesh, without devices; None where none is known.
      split: what is known of it.
    """

    mesh: Any
    split: Split


_split = jax.make_user_context(None)


@contextlib.contextmanager
def split(
    batch: str | Sequence[str] | None = None, heads: str | Sequence[str] | None = None
) -> Iterator[None]:
    """Say which axes of the mesh batch and heads are split over, for kernels on several TPUs.

    Only needed for a mesh with automatic axes (`jax.sharding.AxisType.Auto`) of which some split
    heads: without a word, such axes are taken to split the batch. Results are the same whatever is
    said here; what is not where it is said to be is moved between the devices. Explicit axes and
    arrays outside of `jax.jit` say it themselves.

    Args:
      batch: mesh axes that the batch is split over, in the order of the split.
      heads: mesh axes that the heads are split over.

    Raises:
      ValueError: an axis is named twice.

    >>> import jax, natjax
    >>> q = jax.random.normal(jax.random.key(0), (2, 16, 16, 4, 8))
    >>> with natjax.sharding.split(batch="data", heads="model"):
    ...     out = jax.jit(lambda x: natjax.na2d(x, x, x, kernel_size=7))(q)
    >>> out.shape
    (2, 16, 16, 4, 8)
    """
    names = _names(batch), _names(heads)
    every = names[0] + names[1]
    if len(set(every)) < len(every):
        raise ValueError(f"batch and heads must name each mesh axis once; got {every}")
    with _split(Split(*names, frozenset(every))):
        yield


@contextlib.contextmanager
def placed_as(array: jax.Array, mesh: Any) -> Iterator[None]:
    """Within, calls are placed as ``[B, *X, N, D]`` is, as far as the array or its type knows."""
    spec, known = _spec_of(array, mesh)
    if not known:
        yield
        return
    entries = (*spec, *[None] * array.ndim)
    found = (_names(entries[0]), _names(entries[array.ndim - 2]))
    with _split(Split(*found, frozenset(known))):
        yield


def placement_of(array: jax.Array) -> Placement:
    """Where the arrays of a call are, by one of them."""
    mesh = mesh_of([array])
    return Placement(None if mesh.empty else mesh, _split.value or Split())


def mesh_of(arrays: Sequence[jax.Array | None]) -> Any:
    """The mesh of the context (`jax.set_mesh`), or else that of the arrays."""
    context = jax.sharding.get_abstract_mesh()
    if not context.empty:
        return context
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if x is not None)
    return next((mesh for mesh in meshes if not mesh.empty), context)


def free_axes(mesh: Any) -> Names:
    """Axes of a mesh that `jax.shard_map` has not split yet."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual)


def _dividing(mesh: Any, names: Iterable[str], size: int) -> Names:
    """The axes that a dimension can be split over, one after the other."""
    found: list[str] = []
    for name in names:
        parts = math.prod(mesh.shape[x] for x in (*found, name))
        if size % parts == 0:
            found.append(name)
    return tuple(found)


def _spec_of(array: jax.Array, mesh: Any) -> tuple[Any, Names]:
    """How an array is split, and over which axes that is known."""
    is_at_hand = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    if is_at_hand and isinstance(array.sharding, NamedSharding):
        names = array.sharding.mesh.axis_names
        return array.sharding.spec, names if set(names) <= set(mesh.axis_names) else ()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    known = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    return jax.typeof(array).sharding.spec, known


def _names(entry: Any) -> Names:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
