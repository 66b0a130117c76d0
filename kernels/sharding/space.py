"""Tokens that are split over devices: each computes its queries, and fetches the keys around them.

A device has the same part of the queries and of the keys. The windows of its queries reach beyond
its own keys by a *halo*, which it gets from its neighbors along a mesh axis (from theirs too, where
the halo is longer than a part) by `jax.lax.ppermute`, one token axis after the other, so that
corners come along. The transpose of that sends the gradients of a halo back, where they are added.

All devices run one program, so all fetch the widest halo, which is that of a device at a border.
What lies beyond a border is zeros, and no window holds it: which keys a query sees is decided by
``origins`` of `natjax.kernels.neighborhood.AxisWindow`, and which of them is in force by the
device's place along the mesh axis.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from natjax.kernels import device
from natjax.kernels.neighborhood import AxisWindow, Neighborhood

type Arrays = Sequence[Array | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Space:
    """How tokens are split over a mesh.

    Attributes:
      axes: for each token axis, the mesh axis that it is split over; None for whole ones.
      mesh: the mesh; None for that of the context.
    """

    axes: tuple[str | None, ...]
    mesh: Mesh | None

    @property
    def _mesh(self) -> Any:
        """The mesh of the context, which knows what `jax.shard_map` has split already, or ours."""
        context = jax.sharding.get_abstract_mesh()
        mesh = self.mesh if context.empty else context
        if mesh is None:
            raise ValueError(
                "mesh must be a mesh of devices, unless jax.set_mesh has set one; got None"
            )
        return mesh

    @property
    def names(self) -> frozenset[str]:
        """Mesh axes that tokens are split over."""
        return frozenset(name for name in self.axes if name is not None)

    @property
    def parts(self) -> tuple[int, ...]:
        """Parts of each token axis."""
        sizes = self._mesh.shape
        unknown = sorted(self.names - set(sizes))
        if unknown:
            raise ValueError(
                f"the axes of natjax.sharding.space must be axes of the mesh, {tuple(sizes)}; got "
                f"{unknown}"
            )
        return tuple(1 if name is None else sizes[name] for name in self.axes)

    @property
    def is_inside(self) -> bool:
        """Whether arrays are those of one device, as inside `jax.shard_map` over the axes."""
        split = self.names & set(jax.sharding.get_abstract_mesh().manual_axes)
        if split and split != self.names:
            raise ValueError(
                f"jax.shard_map must split all axes of natjax.sharding.space, "
                f"{sorted(self.names)}, or none; got {sorted(split)}"
            )
        return bool(split)

    def whole(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of all devices together, of those that arrays have."""
        if not self.is_inside:
            return tokens
        return tuple(n * parts for n, parts in zip(tokens, self.parts, strict=True))

    def run(
        self, function: Callable[..., Any], by_token: Arrays, shared: Arrays, results: int
    ) -> Any:
        """Run a function on what each device has.

        Args:
          function: takes all arrays, and returns arrays that begin ``[B, *X]``.
          by_token: arrays that begin so.
          shared: arrays that all devices have.
          results: number of results.
        """
        if self.is_inside:
            return function(*by_token, *shared)
        place = P(None, *self.axes)
        mapped = jax.shard_map(
            function,
            mesh=_automatic(self._mesh) if jax.sharding.get_abstract_mesh().empty else None,
            in_specs=(place,) * len(by_token) + (P(),) * len(shared),
            out_specs=(place,) * results,
            axis_names=set(self.names),
            # Pallas' interpreter does not keep track of what varies.
            check_vma=not device.is_interpreted(),
        )
        return mapped(*by_token, *shared)

    def of_device(self, neighborhood: Neighborhood) -> Neighborhood:
        """The neighborhood of what each device has, with the halos of its keys.

        Raises:
          ValueError: tokens that cannot be split equally.
        """
        pairs = zip(neighborhood.axes, self.parts, strict=True)
        if any(axis.length % parts for axis, parts in pairs):
            raise ValueError(
                "the tokens along an axis that is split over devices must be a multiple of them; "
                f"got tokens {neighborhood.shape} and {self.parts} devices; pad the input and hide "
                "what is padded by key_mask, or use a mesh whose axes divide them"
            )
        pairs = zip(neighborhood.axes, self.parts, strict=True)
        return Neighborhood(tuple(_axis_of_device(*pair) for pair in pairs))

    def part(self) -> Int[Array, "axes"]:
        """The place of this device along each token axis."""
        places = [
            jnp.zeros((), jnp.int32) if name is None else jax.lax.axis_index(name)
            for name in self.axes
        ]
        return jnp.stack([jnp.asarray(place, jnp.int32) for place in places])

    def with_halos(self, x: Array, neighborhood: Neighborhood) -> Array:
        """Keys ``[B, *X, ...]`` of a device, and those around them that its queries see."""
        split = zip(neighborhood.axes, self.axes, self.parts, strict=True)
        for axis, (window, name, parts) in enumerate(split, start=1):
            if name is not None and parts > 1:
                x = _with_halo(x, axis, window, name, parts)
        return x


def _automatic(mesh: Mesh) -> Mesh:
    """The same mesh for arrays of any layout, whose types say nothing of it."""
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _axis_of_device(window: AxisWindow, parts: int) -> AxisWindow:
    if parts == 1:
        return window
    tokens = window.length // parts
    window = dataclasses.replace(
        window,
        queries=(0, tokens * window.query_ratio),
        origins=range(0, window.length, tokens),
    )
    return dataclasses.replace(window, keys=window.needed_keys)


def _with_halo(x: Array, axis: int, window: AxisWindow, name: str, parts: int) -> Array:
    """Fetch the keys before and after those at hand along an axis, the farthest ones first."""
    tokens = x.shape[axis]
    first, stop = window.key_range
    before = [
        _fetch(jax.lax.slice_in_dim(x, tokens - count, tokens, axis=axis), hop, name, window, parts)
        for hop, count in _hops(-first, tokens)
    ]
    after = [
        _fetch(jax.lax.slice_in_dim(x, 0, count, axis=axis), -hop, name, window, parts)
        for hop, count in _hops(stop - tokens, tokens)
    ]
    return jnp.concatenate([*reversed(before), x, *after], axis=axis)


def _hops(halo: int, tokens: int) -> list[tuple[int, int]]:
    """Which neighbors have the tokens of a halo, by distance, and how many each."""
    hops = range(1, -(-halo // tokens) + 1)
    return [(hop, min(tokens, halo - (hop - 1) * tokens)) for hop in hops]


def _fetch(x: Array, hop: int, name: str, window: AxisWindow, parts: int) -> Array:
    """What the device ``hop`` places before this one has; zeros where there is none."""
    pairs = [(source, source + hop) for source in range(parts)]
    if window.is_periodic:
        pairs = [(source, target % parts) for source, target in pairs]
    return jax.lax.ppermute(x, name, [pair for pair in pairs if 0 <= pair[1] < parts])


_space = jax.make_user_context(None)


@contextlib.contextmanager
def space(*axes: str | None, mesh: Mesh | None = None) -> Iterator[None]:
    """Split the tokens of neighborhood attention over the devices of a mesh.

    Within this context the fused ops, and so modules and models, compute the queries of each device
    from its own keys and those around them, which it fetches from its neighbors. Nothing else is
    exchanged, and no device holds all keys. Results, and gradients in either mode, are those of one
    device.

    Arrays are whole ones, of any sharding: what is not laid out over the mesh so is moved before.
    Inside `jax.shard_map` over the same axes they are those of one device instead. Batch and heads
    may be split over other axes of the mesh. Compiled functions are compiled anew for a context.

    Along an axis that is split, a device receives ``(kernel_size - 1) * dilation`` keys and as many
    values, times its tokens along the other axes (more if its part is shorter than a window, since
    windows are shifted at a border; none after its own if causal).

    Args:
      *axes: for each token axis, the mesh axis that it is split over; None for one that is whole.
      mesh: the mesh; None is that of `jax.set_mesh`.

    Raises:
      ValueError: no axis, more than three, or one twice. Ops raise it for tokens that the devices
        do not divide, for a mesh without the axes, and for another number of token axes.
      NotImplementedError: an unfused op, or an implementation other than "xla" and "mosaic_tpu".

    >>> import jax, natjax
    >>> mesh = jax.make_mesh((1, 1), ("y", "x"))
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 16, 32, 2, 8))
    >>> with natjax.sharding.space("y", "x", mesh=mesh):
    ...     out = jax.jit(lambda q, k, v: natjax.na2d(q, k, v, kernel_size=7))(q, k, v)
    >>> out.shape
    (1, 16, 32, 2, 8)
    """
    names = [name for name in axes if name is not None]
    if not 1 <= len(axes) <= 3 or not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            "axes must be one to three, each None or the name of a mesh axis of its own, and not "
            f"all None; got {axes}"
        )
    with _space(Space(axes, mesh)):
        yield


def space_of(ndim: int) -> Space | None:
    """How the tokens of an op are split, if they are.

    Raises:
      ValueError: for another number of token axes.
    """
    found = _space.value
    if found is not None and len(found.axes) != ndim:
        raise ValueError(
            f"natjax.sharding.space must name {ndim} axes for an op of {ndim} token axes; got "
            f"{found.axes}"
        )
    return found


def is_split() -> bool:
    """Whether tokens are split, by any context around."""
    return _space.value is not None
