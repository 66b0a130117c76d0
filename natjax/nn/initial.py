"""Initial values of parameters, and how a whole model gets them quickly.

Drawing a model's parameters one by one compiles a program for each shape, and compiling all of them
as one program takes longer still. `initialise` makes a model in one traced function in which the
initialisers only leave their orders, and draws all numbers that were ordered at once. Within
`jax.jit` the layers draw their numbers themselves: there each device draws its part of a parameter,
where one long draw would be gathered on all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.kernels.checks import accumulation_dtype

Distribution = Literal["normal", "uniform"]


@dataclasses.dataclass(frozen=True)
class Initialiser:
    """Draws a parameter: ``scale`` times numbers of a distribution. Flax layers take it.

    Attributes:
      distribution: ``"normal"`` (mean 0, deviation 1) or ``"uniform"`` (from -1 to 1).
      scale: factor.
    """

    distribution: Distribution
    scale: float

    def __call__(
        self,
        key: Array,
        shape: tuple[int, ...],
        dtype: DTypeLike = jnp.float32,
        out_sharding: Any = None,
    ) -> Array:
        """Draw an array; within `initialise`, order it and return a placeholder of its shape.

        Args:
          key: of JAX.
          shape: of the array.
          dtype: of the array; numbers are drawn in float32 at least.
          out_sharding: accepted, as by Flax's initialisers, and not used.
        """
        del out_sharding
        orders = _ORDERS.get()
        if orders is not None:
            return orders.add(self, shape, dtype)
        exact = accumulation_dtype(jnp.dtype(dtype))
        # In its shape: a device that holds a part of a parameter then draws that part alone.
        drawn = _draw(self.distribution, key, tuple(shape), exact)
        return (self.scale * drawn).astype(dtype)


# The published initialiser cuts at +-2 absolute, 100 deviations, which a normal never reaches.
# jax.nn.initializers.truncated_normal must not be used for that: in float32 its tail collapses, and
# about one weight in 2**24 lands exactly on the cut.
normal_init = Initialiser("normal", 0.02)


def initialise[M: nnx.Module](build: Callable[[nnx.Rngs], M], rngs: nnx.Rngs) -> M:
    """Make a model with freshly drawn parameters, all numbers drawn at once.

    Takes a fraction of the time of ``build(rngs)``, and draws other numbers of the same
    distributions. Within a traced function, as under `jax.jit`, it is ``build(rngs)``.

    Args:
      build: makes the model, drawing parameters alone.
      rngs: stream ``params`` (or the default one) is drawn from.

    >>> import natjax
    >>> from flax import nnx
    >>> from natjax.nn.initial import initialise
    >>> config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3)
    >>> initialise(lambda rngs: natjax.NAT(config, rngs=rngs), nnx.Rngs(0)).head.kernel.shape
    (8, 1000)
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        return build(rngs)
    made: dict[str, Any] = {}

    def others(key: Array) -> list[Array]:
        with _collect() as orders:
            model = build(nnx.Rngs(key))
        graph, state = nnx.split(model)
        leaves, structure = jax.tree.flatten(state)
        places = [orders.find(leaf) for leaf in leaves]
        made.update(graph=graph, structure=structure, orders=orders.orders, places=places)
        return [leaf for leaf, place in zip(leaves, places, strict=True) if place is None]

    rest = iter(jax.jit(others)(rngs.params()))
    drawn = _fill(made["orders"], rngs.params())
    leaves = [next(rest) if place is None else drawn[place] for place in made["places"]]
    return nnx.merge(made["graph"], jax.tree.unflatten(made["structure"], leaves))


@dataclasses.dataclass(frozen=True)
class _Order:
    initialiser: Initialiser
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def pool(self) -> tuple[Distribution, np.dtype]:
        return self.initialiser.distribution, accumulation_dtype(self.dtype)


class _Orders:
    """What the initialisers asked for while a model was traced, and the placeholders they gave."""

    def __init__(self) -> None:
        self.orders: list[_Order] = []
        # Kept here, so that no other array gets the identity of one of them.
        self._placeholders: dict[int, tuple[int, Array]] = {}

    def add(self, initialiser: Initialiser, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        placeholder = jnp.zeros(shape, dtype)
        self._placeholders[id(placeholder)] = len(self.orders), placeholder
        self.orders.append(_Order(initialiser, tuple(shape), jnp.dtype(dtype)))
        return placeholder

    def find(self, value: Array) -> int | None:
        """Which order a parameter's value is the placeholder of; None if it is a value itself."""
        return self._placeholders.get(id(value), (None,))[0]


_ORDERS: ContextVar[_Orders | None] = ContextVar("orders", default=None)


@contextlib.contextmanager
def _collect() -> Iterator[_Orders]:
    orders = _Orders()
    token = _ORDERS.set(orders)
    try:
        yield orders
    finally:
        _ORDERS.reset(token)


def _fill(orders: list[_Order], key: Array) -> list[Array]:
    """One array for each order, cut from one long draw of each distribution."""
    pools: dict[tuple[Distribution, np.dtype], int] = {}
    starts = []
    for order in orders:
        starts.append(pools.get(order.pool, 0))
        pools[order.pool] = starts[-1] + math.prod(order.shape)
    keys = jax.random.split(key, max(1, len(pools)))
    # NumPy cuts, as JAX would compile a program for each shape.
    drawn = {
        (distribution, dtype): np.asarray(_draw(distribution, keys[i], (count,), dtype))
        for i, ((distribution, dtype), count) in enumerate(pools.items())
    }
    return [_cut(drawn[x.pool], start, x) for x, start in zip(orders, starts, strict=True)]


def _cut(pool: Float[np.ndarray, " n"], start: int, order: _Order) -> Array:
    piece = pool[start : start + math.prod(order.shape)].reshape(order.shape)
    return jnp.asarray((order.initialiser.scale * piece).astype(order.dtype))


@jax.jit(static_argnums=(0, 2, 3))
def _draw(
    distribution: Distribution, key: Array, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    if distribution == "normal":
        return jax.random.normal(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -1, 1)
