"""Making an opaque function of arrays a good citizen under `jax.vmap` and sharding.

A Pallas kernel is opaque to JAX: left alone it is batched by adding a grid dimension, and given
sharded arrays it makes XLA gather them. Here a function is declared by the labels of its arrays'
dimensions; then `jax.vmap` folds into the batch, and on a mesh each device runs the function on its
own share of batch and heads.

Labels: ``b`` batch, ``n`` query heads, ``m`` key heads (``n`` is a multiple of ``m``); every other
letter is a dimension that stays whole on each device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

# Dimensions that may be split over devices.
_SPLIT = "bnm"


def split_over_batch_and_heads(
    function: Callable[..., tuple[jax.Array, ...]],
    operands: Sequence[str],
    results: Sequence[str],
    groups: int,
) -> Callable[..., tuple[jax.Array, ...]]:
    """Wrap a function so that it is vmapped and partitioned by its labels.

    Args:
      function: takes arrays, one for each entry of ``operands``, of any batch size and number of
        heads; returns a tuple, one array for each of ``results``. A result without ``b`` must be a
        sum over the batch.
      operands: dimensions of the arguments, such as ``"btnd"``.
      results: dimensions of the results.
      groups: query heads for each key head.

    Returns:
      The same function, for reverse-mode rules to call: it has no derivative of its own.
    """
    partitioned = _partitioned(function, operands, results, groups)
    return _vmapped(partitioned, operands, results)


def each_share(function: Callable[..., Any], batched: Any, shared: Any) -> Any:
    """Call a function of plain JAX on each device's share of the batch.

    Left alone, the compiler adds the gradient of what the rows of a batch share over the devices
    wherever it is accumulated, so in every turn of a loop; and a function that fits its loops to
    the size of the batch sees that of all devices. So the batch is cut into as many parts as there
    are devices (of the mesh of `jax.set_mesh`), each with its own copy of what is shared: the sum
    over devices is then that of the copies, once, at the end.

    Only speed and memory depend on whether the batch is split over the devices in fact.

    Args:
      function: ``(*batched, shared) -> results``; the first dimension of arguments and results is
        the batch, of any size, whose rows do not depend on each other.
      batched: arrays, or trees of them.
      shared: an array, or a tree, that all rows share.
    """
    count = _shares(jax.tree.leaves(batched)[0].shape[0])
    if count == 1:
        return function(*batched, shared)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batched)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), shared)
    results = jax.vmap(function)(*parts, copies)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def _shares(batch: int) -> int:
    """Devices that may each have a part of the batch, as far as the mesh at hand tells."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.gcd(batch, math.prod(size for size, kind in axes if kind == AxisType.Auto))


def _vmapped(
    function: Callable[..., Any], operands: Sequence[str], results: Sequence[str]
) -> Callable[..., Any]:
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def rule(size: int, batched: list[bool], *args: jax.Array) -> Any:
        whole = any(
            is_batched and "b" not in x for is_batched, x in zip(batched, operands, strict=True)
        )
        if whole or any("b" not in x for x in results):
            # One function call for each: what they do not share cannot be told apart in a batch.
            out = _one_by_one(wrapped, batched, args)
        else:
            folded = [
                _fold(x, size, is_batched) for x, is_batched in zip(args, batched, strict=True)
            ]
            folded = [
                fold if "b" in labels else whole
                for fold, whole, labels in zip(folded, args, operands, strict=True)
            ]
            out = tuple(x.reshape(size, -1, *x.shape[1:]) for x in wrapped(*folded))
        return out, (True,) * len(results)

    return wrapped


def _one_by_one(
    function: Callable[..., Any], batched: Sequence[bool], args: Sequence[jax.Array]
) -> Any:
    moving = tuple(x for x, is_batched in zip(args, batched, strict=True) if is_batched)

    def call(current: tuple[jax.Array, ...]) -> Any:
        rest = iter(current)
        return function(
            *(next(rest) if is_batched else x for x, is_batched in zip(args, batched, strict=True))
        )

    return jax.lax.map(call, moving)


def _fold(x: jax.Array, size: int, is_batched: bool) -> jax.Array:
    if not is_batched:
        x = jnp.broadcast_to(x[None], (size, *x.shape))
    return x.reshape(-1, *x.shape[2:])


def _partitioned(
    function: Callable[..., Any], operands: Sequence[str], results: Sequence[str], groups: int
) -> Callable[..., Any]:
    def partition(mesh: Any, args: Any, _: Any) -> Any:
        if mesh.empty:
            # Under `jax.set_mesh`, but no array is laid out on the mesh: all are whole everywhere.
            whole = SingleDeviceSharding(jax.local_devices()[0])
            return mesh, function, (whole,) * len(results), (whole,) * len(operands)
        axes = _split_axes(mesh, operands[0], args[0], groups)

        def of(labels: str) -> NamedSharding:
            return NamedSharding(mesh, P(*(axes.get(label) for label in labels)))

        def total(x: jax.Array, labels: str) -> jax.Array:
            """Sum over the devices that each have a part of what the result has no label for."""
            missing = "b" not in labels, "m" in labels and axes["m"] != axes["n"]
            summed = [
                axes[label] for label, is_summed in zip("bn", missing, strict=True) if is_summed
            ]
            for names in filter(None, summed):
                x = jax.lax.psum(x, names)
            return x

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(map(total, function(*arrays), results))

        return mesh, local, tuple(map(of, results)), tuple(map(of, operands))

    def rule(mesh: Any, values: Sequence[Any], _: Any) -> tuple[str, dict[str, Any]]:
        del mesh
        return _propagation(operands, results, groups, [value.shape for value in values])

    wrapped = custom_partitioning(function)
    wrapped.def_partition(partition=partition, sharding_rule=rule)
    return wrapped


def _split_axes(mesh: Any, labels: str, array: Any, groups: int) -> dict[str, Any]:
    """Mesh axes that each label is split over, from where the first argument is."""
    spec = (*array.sharding.spec, *[None] * array.ndim)
    batch, heads = (spec[labels.index(label)] for label in "bn")
    names = heads if isinstance(heads, tuple) else (heads,) if heads else ()
    parts = math.prod(mesh.shape[name] for name in names)
    kv_heads = array.shape[labels.index("n")] // groups
    if kv_heads == 1:
        # Every device has the one key head, and its share of the query heads.
        return {"b": batch, "n": heads, "m": None}
    # Key heads that cannot be split keep the query heads together.
    heads = heads if kv_heads % parts == 0 else None
    return {"b": batch, "n": heads, "m": heads}


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
    operands: Sequence[str], results: Sequence[str], groups: int, shapes: Sequence[Sequence[int]]
) -> tuple[str, dict[str, Any]]:
    """How shardings spread between arguments and results, in the notation of JAX and Shardy."""
    sizes = {
        label: size
        for labels, shape in zip(operands, shapes, strict=True)
        for label, size in zip(labels, shape, strict=True)
    }
    names = {label: label for label in "".join((*operands, *results))}
    grouped = 1 < groups < sizes["n"]
    if grouped:
        # Query heads are key heads times the heads of a group, in this order.
        names["n"] = "(m g)"
    elif groups == 1:
        names["m"] = "n"

    def side(arrays: Sequence[str]) -> str:
        return ", ".join(" ".join(names[label] for label in labels) for labels in arrays)

    # Shardy wants these in order of their first appearance.
    labels = dict.fromkeys("".join((*operands, *results)))
    whole = tuple(label for label in labels if label not in _SPLIT)
    settings: dict[str, Any] = {"need_replication_factors": whole}
    if grouped:
        settings["g"] = groups
        if not any("m" in labels for labels in (*operands, *results)):
            settings["m"] = sizes["n"] // groups
    return f"{side(operands)} -> {side(results)}", settings
