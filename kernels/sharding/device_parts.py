"""Functions of plain JAX that run on each device's part of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType


def on_device_parts(function: Callable[..., Any], batched: Any, shared: Any) -> Any:
    """Call a function of plain JAX on each device's share of the batch.

    Left alone, the compiler adds the gradient of what the rows of a batch share over the devices
    wherever it is accumulated, so in every turn of a loop; and a function that fits its loops to
    the size of the batch sees that of all devices. So the batch is cut into as many parts as there
    are devices (of the mesh of `jax.set_mesh`), each with its own copy of what is shared: the sum
    over devices is then that of the copies, once, at the end.

    Only speed and memory depend on whether the batch is split over the devices in fact. A batch of
    unknown size, as in `jax.export`, is left as it is.

    Args:
      function: ``(*batched, shared) -> results``; the first dimension of arguments and results is
        the batch, of any size, whose rows do not depend on each other.
      batched: arrays, or trees of them.
      shared: an array, or a tree, that all rows share.
    """
    batch = jax.tree.leaves(batched)[0].shape[0]
    count = _num_parts(batch) if isinstance(batch, int) else 1
    if count == 1:
        return function(*batched, shared)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batched)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), shared)
    results = jax.vmap(function)(*parts, copies)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def _num_parts(batch: int) -> int:
    """Devices that may each have a part of the batch, as far as the mesh at hand tells."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.gcd(batch, math.prod(size for size, kind in axes if kind == AxisType.Auto))
