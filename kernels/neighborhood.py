"""The one definition of the neighborhood, per axis, for every backend, model and test.

An axis has ``length`` tokens. ``dilation`` splits them into that many interleaved *groups*: token
``i`` is in group ``i % dilation`` at *position* ``i // dilation``. Everything else (window, border,
stride, causality) happens between positions of one group. A neighborhood in 2-D or 3-D is the
Cartesian product of its axes.

The functions below are plain integer arithmetic on Python ints, NumPy arrays and JAX arrays alike,
traced ones included, so a kernel body and a NumPy planner evaluate the very same lines.

References:
  Hassani et al., *Neighborhood Attention Transformer*, 2022, section 3.1;
  Hassani and Shi, *Dilated Neighborhood Attention Transformer*, 2022, section 3;
  Hassani et al., *Generalized Neighborhood Attention*, 2025 (stride).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

# An int, a NumPy array or a (traced) JAX array; what comes in decides what comes out.
type Ints = Any
type Bools = Any


def _namespace(*operands: Ints) -> Any:
    return jnp if any(isinstance(x, jax.Array) for x in operands) else np


def window_start(
    position: Ints,
    group_length: Ints,
    *,
    kernel_size: int,
    stride: int = 1,
    is_causal: bool = False,
) -> Ints:
    """Position of the first key of a query's window.

    The ``stride`` queries of a stride group share the window of their *leader*: the centre one (the
    right one of two), or the last one when causal. Without causality the window is centred on the
    leader, even sizes reaching one further to the left, and shifted inside at a border; with
    causality it ends at the leader and is cut at the left border.

    Args:
      position: query position in its dilation group, ``0 <= position < group_length``.
      group_length: tokens in that group.
      kernel_size: window size, ``1 <= kernel_size <= group_length``.
      stride: queries that share a window, ``1 <= stride <= kernel_size``; 1 slides the window by
        one token, ``kernel_size`` gives blocked attention.
      is_causal: whether keys after the query are hidden.
    """
    xp = _namespace(position, group_length)
    behind_first = stride - 1 if is_causal else stride // 2
    leader = xp.minimum(position // stride * stride + behind_first, group_length - 1)
    if is_causal:
        return xp.maximum(leader - kernel_size + 1, 0)
    return xp.minimum(xp.maximum(leader - kernel_size // 2, 0), group_length - kernel_size)


def window_end(
    position: Ints,
    group_length: Ints,
    *,
    kernel_size: int,
    stride: int = 1,
    is_causal: bool = False,
) -> Ints:
    """Position just past the last key of a query's window (arguments as in `window_start`).

    Without causality the window always holds exactly ``kernel_size`` keys; with it, the query
    itself is the last key.
    """
    if is_causal:
        return position + 1
    return (
        window_start(position, group_length, kernel_size=kernel_size, stride=stride) + kernel_size
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisWindow:
    """The neighborhood along one axis.

    Attributes:
      length: tokens along the axis, at least ``kernel_size * dilation``.
      kernel_size: window size in tokens of a dilation group, at least 1, odd or even.
      stride: queries that share a window, from 1 to ``kernel_size``.
      dilation: distance between neighboring keys, at least 1; need not divide ``length``.
      is_causal: whether keys after the query are hidden.
      queries: first token, and one past the last, of the queries at hand; None for all.
      keys: first token, and one past the last, of the keys at hand; None for all.

    Which keys a query sees depends on ``length`` alone. An array may hold a part of the tokens, as
    on a device that has some rows of a map, or where one token is decoded after the other.
    """

    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    queries: tuple[int, int] | None = None
    keys: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check that what is at hand are tokens of the axis."""
        for name in ("queries", "keys"):
            first, stop = getattr(self, name) or (0, self.length)
            if not 0 <= first < stop <= self.length:
                raise ValueError(
                    f"{name} must be the first token and one past the last of a part of the axis, "
                    f"whose tokens number {self.length}; got {(first, stop)}"
                )

    @property
    def query_tokens(self) -> Int[np.ndarray, "queries"]:
        """Token index of each query at hand."""
        return np.arange(*(self.queries or (0, self.length)))

    @property
    def key_tokens(self) -> Int[np.ndarray, "keys"]:
        """Token index of each key at hand."""
        return np.arange(*(self.keys or (0, self.length)))

    @property
    def needed_keys(self) -> tuple[int, int]:
        """First token, and one past the last, of the keys that the queries at hand see."""
        query, d = self.query_tokens, self.dilation
        first = self.start(query) * d + query % d
        last = (self.end(query) - 1) * d + query % d
        return int(first.min()), int(last.max()) + 1

    def group_length(self, group: Ints) -> Ints:
        """Tokens in a dilation group; the first ``length % dilation`` groups have one more."""
        return (self.length - group + self.dilation - 1) // self.dilation

    @property
    def max_group_length(self) -> int:
        """Tokens in the longest dilation group."""
        return self.group_length(0)

    def start(self, query: Ints) -> Ints:
        """Group position of the first key that ``query`` sees."""
        d = self.dilation
        return window_start(
            query // d,
            self.group_length(query % d),
            kernel_size=self.kernel_size,
            stride=self.stride,
            is_causal=self.is_causal,
        )

    def end(self, query: Ints) -> Ints:
        """Group position just past the last key that ``query`` sees."""
        d = self.dilation
        return window_end(
            query // d,
            self.group_length(query % d),
            kernel_size=self.kernel_size,
            stride=self.stride,
            is_causal=self.is_causal,
        )

    def keys_of_queries(
        self, group: int
    ) -> tuple[Int[np.ndarray, "positions"], Int[np.ndarray, "positions"]]:
        """For each query position of a dilation group, the first key that it sees, and one past
        the last.
        """
        query = np.arange(group, self.length, self.dilation)
        return self.start(query), self.end(query)

    def queries_of_keys(
        self, group: int
    ) -> tuple[Int[np.ndarray, "positions"], Int[np.ndarray, "positions"]]:
        """For each key position of a dilation group, the first query that sees it, and one past
        the last.

        Windows move only forward with the query, so those that hold a key are consecutive.
        """
        start, end = self.keys_of_queries(group)
        position = np.arange(len(start))
        first = np.searchsorted(end, position, side="right")
        last = np.searchsorted(start, position, side="right")
        return first, last

    def neighbor(self, query: Ints, slot: Ints) -> Ints:
        """Token index of the key in window slot ``slot``, ``0 <= slot < kernel_size``.

        Only meaningful where `slot_is_visible`; a causal window's empty slots come last.
        """
        return (self.start(query) + slot) * self.dilation + query % self.dilation

    def slot_is_visible(self, query: Ints, slot: Ints) -> Bools:
        """Whether window slot ``slot`` of ``query`` holds a key (always, unless causal)."""
        return self.start(query) + slot < self.end(query)

    def is_neighbor(self, query: Ints, key: Ints) -> Bools:
        """Whether ``query`` sees ``key``, both token indices."""
        d = self.dilation
        position = key // d
        same_group = key % d == query % d
        return same_group & (self.start(query) <= position) & (position < self.end(query))

    def bias_index(self, query: Ints, key: Ints) -> Ints:
        """Index into the ``2 * kernel_size - 1`` relative position biases of the axis.

        ``key - query`` in units of the dilation, shifted to start at 0. In range wherever
        `is_neighbor` holds.
        """
        d = self.dilation
        return key // d - query // d + self.kernel_size - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Neighborhood:
    """The Cartesian product of one to three `AxisWindow`, over tokens flattened row-major."""

    axes: tuple[AxisWindow, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(axis.length for axis in self.axes)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Window size along each axis."""
        return tuple(axis.kernel_size for axis in self.axes)

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return math.prod(self.shape)

    @property
    def num_neighbors(self) -> int:
        """Window slots of a query, ``K`` in array shapes."""
        return math.prod(self.kernel_size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of one head's relative position biases."""
        return tuple(2 * axis.kernel_size - 1 for axis in self.axes)

    def dense_mask(self) -> Bool[np.ndarray, "Tq Tk"]:
        """Who sees whom of the tokens at hand: rows are queries, columns are keys."""
        per_axis = [a.is_neighbor(a.query_tokens[:, None], a.key_tokens[None]) for a in self.axes]
        return functools.reduce(np.kron, per_axis).astype(bool)

    def dense_bias_index(self) -> tuple[Int[np.ndarray, "T T"], ...]:
        """Per axis, the bias index of each query and key, clipped where they are not neighbors."""
        tokens = np.unravel_index(np.arange(self.num_tokens), self.shape)
        return tuple(
            np.clip(axis.bias_index(x[:, None], x[None, :]), 0, 2 * axis.kernel_size - 2)
            for axis, x in zip(self.axes, tokens, strict=True)
        )

    def neighbor_table(self) -> tuple[Int[np.ndarray, "T K"], Bool[np.ndarray, "T K"]]:
        """Flat token index of the key in each window slot, and whether the slot holds one.

        Slots are in row-major order over the window. An empty slot (causal windows only) points at
        token 0.
        """
        tokens = np.unravel_index(np.arange(self.num_tokens)[:, None], self.shape)
        slots = np.unravel_index(np.arange(self.num_neighbors)[None, :], self.kernel_size)
        keys, visible = [], np.ones((self.num_tokens, self.num_neighbors), bool)
        for axis, x, slot in zip(self.axes, tokens, slots, strict=True):
            seen = axis.slot_is_visible(x, slot)
            keys.append(np.where(seen, axis.neighbor(x, slot), 0))
            visible &= seen
        flat = np.ravel_multi_index(tuple(keys), self.shape)
        return np.where(visible, flat, 0), visible
