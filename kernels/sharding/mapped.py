"""An opaque function on a mesh, mapped over its devices when it is traced.

The compiler for TPUs does not partition kernels. So each device runs the function on its own part
of batch and heads by `jax.shard_map`, over all axes of the mesh that are not mapped already.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from natjax.kernels.sharding.operands import Dim, Dims, Signature, axes_of, num_sets, total
from natjax.kernels.sharding.placement import Placement, free_axes


def map_over_batch_and_heads(
    function: Callable[..., tuple[jax.Array, ...]],
    signature: Signature,
    groups: int,
    placement: Placement,
    *,
    check_vma: bool,
) -> Callable[..., tuple[jax.Array, ...]]:
    """Wrap a function so that each device runs it on its part of batch and heads.

    Devices that share neither all do the same.

    Args:
      function: takes and returns arrays as the signature says, of any batch size and number of
        heads.
      signature: dimensions of arguments and results.
      groups: query heads for each key head.
      placement: where the arrays are.
      check_vma: whether what the function does keeps track of what varies over devices.

    Returns:
      The same function, for derivative rules to call: it is not meant to be differentiated.
    """
    operands, results = signature.operands, signature.results

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        context = jax.sharding.get_abstract_mesh()
        mesh = placement.mesh if context.empty else context
        if mesh is None or not _has_parts(mesh):
            return function(*arrays)
        sizes = dict(zip(operands[0], arrays[0].shape, strict=True))
        sets = num_sets(operands, arrays)
        batch, heads, of_sets = placement.split.over(
            mesh, sizes[Dim.BATCH] // sets, sizes[Dim.HEADS], sets
        )
        parts = math.prod(mesh.shape[name] for name in heads)
        axes = axes_of(batch, heads, parts, sizes[Dim.HEADS] // groups) | {Dim.SETS: of_sets}
        joined = functools.partial(_joined, sets)

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            here = num_sets(operands, arrays)
            found = function(*map(joined, arrays, operands))
            found = map(functools.partial(total, axes), found, results)
            return tuple(map(functools.partial(_by_set, sets, here), found, results))

        def place(dims: Dims) -> P:
            front = (of_sets,) if sets > 1 and Dim.BATCH in dims else ()
            return P(*front, *map(axes.get, dims))

        mapped = jax.shard_map(
            local,
            mesh=mesh if context.empty else None,
            in_specs=tuple(map(place, operands)),
            out_specs=tuple(map(place, results)),
            axis_names=set(free_axes(mesh)),
            check_vma=check_vma,
        )
        by_set = functools.partial(_by_set, sets, sets)
        return tuple(map(joined, mapped(*map(by_set, arrays, operands)), results))

    return run


def _by_set(sets: int, here: int, x: jax.Array, dims: Dims) -> jax.Array:
    """A batch as sets of images, of which so many are here, if there are several in all."""
    if sets == 1 or Dim.BATCH not in dims:
        return x
    return x.reshape(here, x.shape[0] // here, *x.shape[1:])


def _joined(sets: int, x: jax.Array, dims: Dims) -> jax.Array:
    """The inverse of `_by_set`."""
    return x if sets == 1 or Dim.BATCH not in dims else x.reshape(-1, *x.shape[2:])


def _has_parts(mesh: Any) -> bool:
    """Whether a mesh is of several devices, and some axes are not mapped yet."""
    return bool(free_axes(mesh)) and math.prod(mesh.axis_sizes) > 1
