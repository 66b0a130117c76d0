"""The mesh, and where each array lives on it.

Axes ``("data", "fsdp")``: batches are split over both, parameters, optimizer state and averages
over ``fsdp``. The compiler inserts the collectives (Auto axes); nothing here gathers a whole state.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from natjax.train.config import MeshConfig
from natjax.train.errors import UserError

# Splitting fewer values than this costs more in latency than it saves in memory.
_SMALLEST = 1024


def request_devices(mesh: MeshConfig) -> None:
    """Let the CPU pose as enough devices for the mesh. Call it before JAX is first used.

    On a machine with accelerators, and where the devices exist already, this changes nothing.
    """
    wanted = mesh.data * mesh.fsdp
    if wanted > max(1, jax.config.jax_num_cpu_devices):
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:
            return  # JAX runs already; make_mesh tells whether there are enough


def make_mesh(mesh: MeshConfig) -> Mesh:
    """Return the mesh over the first ``data * fsdp`` devices.

    Raises:
      UserError: there are fewer devices; both numbers are named.
    """
    wanted, devices = mesh.data * mesh.fsdp, jax.devices()
    if wanted > len(devices):
        raise UserError(
            f"mesh.data * mesh.fsdp must be at most the {len(devices)} devices here"
            f" ({devices[0].platform}), got {mesh.data} * {mesh.fsdp} = {wanted}"
        )
    return jax.make_mesh(
        (mesh.data, mesh.fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[:wanted],
    )


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Return how one array is split: its longest axis that `fsdp` divides, else not at all.

    Args:
      shape: Shape of the array. Under 1024 values it stays whole.
      fsdp: Devices to split over; 1 leaves everything whole.
    """
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(shape) < _SMALLEST:
        return PartitionSpec()
    chosen = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def state_sharding(abstract: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array in a tree of shapes."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(leaf.shape, fsdp)), abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Make global arrays from the rows that this host has."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
