"""Meshes whose axes are explicit: arrays have their sharding in their type.

JAX then wants to know of every operation how its result is laid out, which for the many of an
implementation is neither readable nor of use. So an op works as under automatic axes, where the
compiler decides, and only its results are typed: as the queries are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.kernels.sharding.placement import mesh_of, placed_as


def typed_like_first(
    function: Callable[..., Any], arrays: Sequence[jax.Array | None], kept: Sequence[int]
) -> Any:
    """Call a function of arrays, its results typed with the sharding of the first one.

    Args:
      function: takes the arrays; returns an array or a tuple of arrays.
      arrays: its arguments.
      kept: for each result, how many of its dimensions are laid out as those of the first argument,
        which they begin with; the others are whole.
    """
    mesh = mesh_of(arrays)
    explicit = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }
    with placed_as(arrays[0], mesh):
        if not explicit:
            return function(*arrays)
        spec = jax.typeof(arrays[0]).sharding.spec
        places = tuple(NamedSharding(mesh, P(*spec[:count])) for count in kept)
        shardings = places if len(places) > 1 else places[0]
        run = jax.sharding.auto_axes(function, axes=tuple(explicit), out_sharding=shardings)
        return run(*arrays)
