"""The mesh, and where each array lives on it.

Axes ``("data", "fsdp")``: batches are split over both, parameters, optimizer state and averages
over ``fsdp``. The compiler inserts the collectives (Auto axes); nothing here gathers a whole state.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, get_abstract_mesh

from natjax.train.cluster import processes
from natjax.train.config.settings import MeshConfig
from natjax.train.errors import UserError

# Splitting fewer values than this costs more in latency than it saves in memory.
_SMALLEST = 1024


def request_devices(mesh: MeshConfig) -> None:
    """Let the CPU pose as enough devices for the mesh. Call it before JAX is first used.

    On a machine with accelerators, and where the devices exist already, this changes nothing.
    """
    wanted = -(-(mesh.data or 1) * mesh.fsdp // processes.count())
    if wanted > max(1, jax.config.jax_num_cpu_devices):
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:
            return  # JAX runs already; make_mesh tells whether there are enough


def make_mesh(mesh: MeshConfig) -> Mesh:
    """Return the mesh over the first ``data * fsdp`` devices, as `device_grid` arranges them.

    Raises:
      UserError: the devices are too few, do not divide, or would be idle in one of several
        processes; the numbers are named.
    """
    return mesh_of(device_grid(mesh, jax.devices()))


def mesh_of(devices: np.ndarray) -> Mesh:
    """Return the mesh of a grid of devices, ``[data, fsdp]``."""
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def device_grid(mesh: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """Return devices as ``[data, fsdp]``, those of each process together.

    Batches are split over the devices in this order, so process h has the h-th part of each, and
    groups of `fsdp` devices stay within a process where its devices allow: within a group more is
    exchanged, and more often, than between groups. (`jax.make_mesh` follows the network instead and
    may interleave processes.)

    Args:
      mesh: The wanted sizes.
      devices: All there are, in any order.

    Raises:
      UserError: as for `make_mesh`.
    """
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    data = _groups(mesh, devices)
    _check_devices(data, mesh.fsdp, devices)
    return np.array(devices[: data * mesh.fsdp]).reshape(data, mesh.fsdp)


def _groups(mesh: MeshConfig, devices: Sequence[Any]) -> int:
    if mesh.data is not None:
        return mesh.data
    if devices[0].platform == "cpu" and jax.process_count() == 1:
        return 1  # there are as many as were asked for, all on the same cores
    if len(devices) % mesh.fsdp:
        raise UserError(
            f"mesh.fsdp must divide the {len(devices)} devices here ({devices[0].platform}),"
            f" got {mesh.fsdp}"
        )
    return len(devices) // mesh.fsdp


def _check_devices(data: int, fsdp: int, devices: Sequence[Any]) -> None:
    wanted = data * fsdp
    if wanted > len(devices):
        raise UserError(
            f"mesh.data * mesh.fsdp must be at most the {len(devices)} devices here"
            f" ({devices[0].platform}), got {data} * {fsdp} = {wanted}"
        )
    if jax.process_count() == 1:
        return
    if wanted < len(devices):
        raise UserError(
            f"mesh.data * mesh.fsdp must be all {len(devices)} devices of the"
            f" {jax.process_count()} processes, got {data} * {fsdp} = {wanted}; leave out mesh.data"
        )
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise UserError(f"all processes must have as many devices, got {sorted(counts.items())}")


def describe(mesh: Mesh) -> str:
    """Return a mesh in words, as in ``"8 x cpu (data 4, fsdp 2)"``."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{hosts} ({sizes})"


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Check that every part of a batch can be split over the devices.

    Raises:
      UserError: it cannot.
    """
    if batch_size % (mesh.size * accumulate):
        parts = f" times accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"batch_size must be a multiple of the {mesh.size} devices"
            f" (mesh.data * mesh.fsdp){parts}, got {batch_size}"
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
    """Return the sharding of every array in a tree of shapes, whose flat dicts have names.

    Position biases stay whole. They are small, and attention lays them out as tables many times
    their size: of a split one, the compiler would gather the tables.
    """

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        whole = jax.tree_util.keystr(path[-1:], simple=True).endswith(".rpb")
        return NamedSharding(mesh, leaf_spec(leaf.shape, 1 if whole else mesh.shape["fsdp"]))

    return jax.tree.map_with_path(sharding, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def keep_rows[Tree](tree: Tree) -> Tree:
    """Hold the outputs of a network to the devices that have their examples.

    Left alone, the compiler reads a classifier that is split over "fsdp" as one whose classes are:
    it then gathers the features of all rows instead of the classifier. For functions that the
    engine compiles; where there is no mesh, this does nothing.

    Args:
      tree: Arrays whose first axis is that of the examples.
    """
    return _held(tree, PartitionSpec(("data", "fsdp")))


def keep_whole[Tree](tree: Tree) -> Tree:
    """Hold arrays whole on every device, such as parameters where they are used.

    For functions that the engine compiles; where there is no mesh, this does nothing.

    Args:
      tree: Arrays.
    """
    return _held(tree, PartitionSpec())


def _held[Tree](tree: Tree, spec: PartitionSpec) -> Tree:
    mesh = get_abstract_mesh()
    if "fsdp" not in mesh.axis_names:
        return tree
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Make global arrays from the rows that this process has, as `make_mesh` lays them out."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
