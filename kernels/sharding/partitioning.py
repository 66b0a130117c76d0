"""An opaque function on a mesh: each device runs it on its own part of batch and heads.

A kernel is opaque to JAX: given sharded arrays, it makes XLA gather them. Here a function is
declared by the dimensions of its arrays, and JAX's ``custom_partitioning`` does the rest.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    SingleDeviceSharding,
    get_abstract_mesh,
    use_abstract_mesh,
)
from jax.sharding import PartitionSpec as P

from natjax.kernels.sharding.batching import vmap_into_batch
from natjax.kernels.sharding.operands import Axes, Dim, Dims, Signature, axes_of, total


def split_over_batch_and_heads(
    function: Callable[..., tuple[jax.Array, ...]], signature: Signature, groups: int
) -> Callable[..., tuple[jax.Array, ...]]:
    """Wrap a function so that it is vmapped and partitioned by the dimensions of its arrays.

    Args:
      function: takes and returns arrays as the signature says, of any batch size and number of
        heads.
      signature: dimensions of arguments and results.
      groups: query heads for each key head.

    Returns:
      The same function, for derivative rules to call: it has no derivative of its own.
    """
    return vmap_into_batch(_partitioned(function, signature, groups), signature)


def _partitioned(
    function: Callable[..., Any], signature: Signature, groups: int
) -> Callable[..., Any]:
    operands, results = signature.operands, signature.results

    def partition(mesh: Any, args: Any, _: Any) -> Any:
        if mesh.empty:
            # Under `jax.set_mesh`, but no array is laid out on the mesh: all are whole everywhere.
            whole = SingleDeviceSharding(jax.local_devices()[0])
            return mesh, function, (whole,) * len(results), (whole,) * len(operands)
        axes = _split_axes(mesh, operands[0], args[0], groups)

        def place(dims: Dims) -> NamedSharding:
            return NamedSharding(mesh, P(*map(axes.get, dims)))

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            add = functools.partial(total, axes)
            # Traced while the program is compiled, when the mesh of the context is whatever it is;
            # what each device does has no axes to be laid out over.
            with use_abstract_mesh(_automatic(mesh)):
                return tuple(map(add, function(*arrays), results))

        return mesh, local, tuple(map(place, results)), tuple(map(place, operands))

    def rule(mesh: Any, values: Sequence[Any], _: Any) -> tuple[str, dict[str, Any]]:
        del mesh
        return _propagation(signature, groups, [value.shape for value in values])

    wrapped = custom_partitioning(function)
    wrapped.def_partition(partition=partition, sharding_rule=rule)
    return wrapped


def _automatic(mesh: Any) -> AbstractMesh:
    """The same mesh with axes that no type has to mention, of the devices that are compiled for."""
    return AbstractMesh(
        mesh.axis_sizes,
        mesh.axis_names,
        axis_types=(AxisType.Auto,) * len(mesh.axis_names),
        abstract_device=get_abstract_mesh().abstract_device,
    )


def _split_axes(mesh: Any, dims: Dims, array: Any, groups: int) -> Axes:
    """Mesh axes that each dimension is split over, from where the first argument is."""
    spec = (*array.sharding.spec, *[None] * array.ndim)
    batch, heads = (spec[dims.index(dim)] for dim in (Dim.BATCH, Dim.HEADS))
    names = heads if isinstance(heads, tuple) else (heads,) if heads else ()
    parts = math.prod(mesh.shape[name] for name in names)
    kv_heads = array.shape[dims.index(Dim.HEADS)] // groups
    return axes_of(batch, heads, parts, kv_heads)


def align_varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Inside `jax.shard_map`, let all arrays vary over the mesh axes that any of them varies over.

    What an opaque function makes of them varies so too. The transpose of this is the sum over
    devices that the gradient of an array which does not vary needs.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*varying)
    missing = (tuple(sorted(union - v)) for v in varying)
    return tuple(
        jax.lax.pcast(x, axes, to="varying") if axes else x
        for x, axes in zip(arrays, missing, strict=True)
    )


def _propagation(
    signature: Signature, groups: int, shapes: Sequence[Sequence[int]]
) -> tuple[str, dict[str, Any]]:
    """How shardings spread between arguments and results, in the notation of JAX and Shardy."""
    dims = signature.operands[0]
    heads = shapes[0][dims.index(Dim.HEADS)]
    factors = {Dim.BATCH: "b", Dim.HEADS: "n", Dim.KV_HEADS: "n" if groups == 1 else "m"}
    is_grouped = 1 < groups < heads
    if is_grouped:
        # Query heads are key heads times the heads of a group, in this order.
        factors[Dim.HEADS] = "(m g)"
    whole = (f"w{i}" for i in itertools.count())
    used: list[str] = []

    def name(dim: Dim) -> str:
        if dim not in factors:
            used.append(next(whole))
            return used[-1]
        return factors[dim]

    def side(arrays: Sequence[Dims]) -> str:
        return ", ".join(" ".join(map(name, array)) for array in arrays)

    notation = f"{side(signature.operands)} -> {side(signature.results)}"
    settings: dict[str, Any] = {"need_replication_factors": tuple(used)}
    if is_grouped:
        settings["g"] = groups
        if not any(Dim.KV_HEADS in x for x in (*signature.operands, *signature.results)):
            settings["m"] = heads // groups
    return notation, settings
