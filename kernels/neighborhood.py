"""The one definition of the neighborhood, per axis, for every backend, model and test.

An axis has ``length`` tokens. ``dilation`` splits them into that many interleaved *groups*: token
``i`` is in group ``i % dilation`` at *position* ``i // dilation``. Everything else (window, border,
stride, causality) happens between positions of one group. A neighborhood in 2-D or 3-D is the
Cartesian product of its axes.

Queries may lie on a finer grid than keys, ``query_ratio`` of them on each key: a query has the
window of the key token that it lies on. Arrays may hold a part of the queries and of the keys.

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
    is_periodic: bool = False,
) -> Ints:
    """Position of the first key of a query's window.

    The ``stride`` queries of a stride group share the window of their *leader*: the centre one (the
    right one of two), or the last one when causal. Without causality the window is centred on the
    leader, even sizes reaching one further to the left, and shifted inside at a border; with
    causality it ends at the leader and is cut at the left border. On a periodic axis there are no
    borders: a window may begin below 0, or end past the group, and goes round.

    Args:
      position: query position in its dilation group, ``0 <= position < group_length``.
      group_length: tokens in that group.
      kernel_size: window size, ``1 <= kernel_size <= group_length``.
      stride: queries that share a window, ``1 <= stride <= kernel_size``; 1 slides the window by
        one token, ``kernel_size`` gives blocked attention.
      is_causal: whether keys after the query are hidden.
      is_periodic: whether the axis is a circle.
    """
    xp = _namespace(position, group_length)
    behind_first = stride - 1 if is_causal else stride // 2
    leader = xp.minimum(position // stride * stride + behind_first, group_length - 1)
    if is_causal:
        return xp.maximum(leader - kernel_size + 1, 0)
    if is_periodic:
        return leader - kernel_size // 2
    return xp.minimum(xp.maximum(leader - kernel_size // 2, 0), group_length - kernel_size)


def window_end(
    position: Ints,
    group_length: Ints,
    *,
    kernel_size: int,
    stride: int = 1,
    is_causal: bool = False,
    is_periodic: bool = False,
) -> Ints:
    """Position just past the last key of a query's window (arguments as in `window_start`).

    Without causality the window always holds exactly ``kernel_size`` keys; with it, the query
    itself is the last key.
    """
    if is_causal:
        return position + 1
    start = window_start(
        position, group_length, kernel_size=kernel_size, stride=stride, is_periodic=is_periodic
    )
    return start + kernel_size


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AxisWindow:
    """The neighborhood along one axis.

    Attributes:
      length: key tokens along the axis, at least ``kernel_size * dilation``.
      kernel_size: window size in tokens of a dilation group, at least 1, odd or even.
      stride: queries that share a window, from 1 to ``kernel_size``.
      dilation: distance between neighboring keys, at least 1; need not divide ``length``.
      is_causal: whether keys after the query are hidden.
      is_periodic: whether the axis is a circle, so that windows go round; then ``dilation`` divides
        ``length``, and the axis is not causal.
      query_ratio: queries for each key token: query ``i`` has the window of key token
        ``i // query_ratio``.
      queries: first query, and one past the last, of those at hand; None for all.
      keys: first token, and one past the last, of the keys at hand; None for all. On a periodic
        axis they may begin below 0 or end past ``length``, and go round.
      origins: key tokens that the tokens at hand may be counted from: ``queries`` and ``keys`` are
        relative to one of them.

    Which keys a query sees depends on ``length`` alone. An array may hold a part of the tokens, as
    on a device that has some rows of a map, or where one token is decoded after the other. Several
    ``origins`` make one program of what several devices do, each with its own part of the axis.
    """

    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    is_periodic: bool = False
    query_ratio: int = 1
    queries: tuple[int, int] | None = None
    keys: tuple[int, int] | None = None
    origins: range = range(1)

    def __post_init__(self) -> None:
        """Check that what is at hand are tokens of the axis."""
        if self.origins != range(1):
            return  # whoever cuts an axis for devices sees to it
        whole = self.length * self.query_ratio
        first, stop = self.query_range
        if not 0 <= first < stop <= whole:
            raise ValueError(
                f"queries must be the first and one past the last of a part of the axis, whose "
                f"queries number {whole}; got {(first, stop)}"
            )
        first, stop = self.key_range
        fits = stop - first <= self.length if self.is_periodic else 0 <= first < stop <= self.length
        if not fits or first >= stop:
            raise ValueError(
                f"keys must be the first and one past the last of a part of the axis, whose keys "
                f"number {self.length}; got {(first, stop)}"
            )

    @property
    def query_range(self) -> tuple[int, int]:
        """First query, and one past the last, of those at hand."""
        return self.queries or (0, self.length * self.query_ratio)

    @property
    def key_range(self) -> tuple[int, int]:
        """First token, and one past the last, of the keys at hand."""
        return self.keys or (0, self.length)

    @property
    def num_queries(self) -> int:
        """Queries at hand."""
        first, stop = self.query_range
        return stop - first

    @property
    def num_keys(self) -> int:
        """Keys at hand."""
        first, stop = self.key_range
        return stop - first

    @property
    def query_tokens(self) -> Int[np.ndarray, "queries"]:
        """Index of each query at hand."""
        return np.arange(*self.query_range)

    @property
    def key_tokens(self) -> Int[np.ndarray, "keys"]:
        """Token index of each key at hand."""
        return np.arange(*self.key_range) % self.length

    @property
    def needed_keys(self) -> tuple[int, int]:
        """First token, and one past the last, of the keys that the queries at hand see.

        Relative to the origin, and those of all origins together. On a periodic axis they may begin
        below 0 or end past ``length``.
        """
        spans = []
        for origin in self.origins:
            query = self.query_tokens + origin * self.query_ratio
            group = query // self.query_ratio % self.dilation
            first = self.start(query) * self.dilation + group
            last = (self.end(query) - 1) * self.dilation + group
            spans.append((int(first.min()) - origin, int(last.max()) + 1 - origin))
        first, stop = zip(*spans, strict=True)
        return min(first), max(stop)

    @property
    def aligned_keys(self) -> tuple[int, int]:
        """`key_range`, after the whole turns of a periodic axis that lead to `needed_keys`."""
        first, stop = self.key_range
        turns = (self.needed_keys[0] - first) // self.length if self.is_periodic else 0
        return first + turns * self.length, stop + turns * self.length

    @property
    def is_circle(self) -> bool:
        """Whether the keys at hand are a whole circle."""
        return self.is_periodic and self.num_keys == self.length

    def require_keys(self) -> None:
        """Check that the keys that the queries at hand see are at hand.

        Raises:
          ValueError: one is not.
        """
        (first, stop), (low, high) = self.aligned_keys, self.needed_keys
        if not self.is_circle and not first <= low < high <= stop:
            raise ValueError(
                f"key must hold every key that a query sees, tokens {low} to {high - 1} along an "
                f"axis; got tokens {first} to {stop - 1}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether all queries and keys are at hand, one query a key, between two borders."""
        return (
            self.queries is None
            and self.keys is None
            and self.query_ratio == 1
            and not self.is_periodic
            and self.origins == range(1)
        )

    @property
    def _shape(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "is_causal": self.is_causal,
            "is_periodic": self.is_periodic,
        }

    def group_length(self, group: Ints) -> Ints:
        """Tokens in a dilation group; the first ``length % dilation`` groups have one more."""
        return (self.length - group + self.dilation - 1) // self.dilation

    @property
    def max_group_length(self) -> int:
        """Tokens in the longest dilation group."""
        return self.group_length(0)

    def start(self, query: Ints) -> Ints:
        """Group position of the first key that ``query`` sees, below 0 if the window goes round."""
        token = query // self.query_ratio
        length = self.group_length(token % self.dilation)
        return window_start(token // self.dilation, length, **self._shape)

    def end(self, query: Ints) -> Ints:
        """Group position just past the last key that ``query`` sees."""
        token = query // self.query_ratio
        length = self.group_length(token % self.dilation)
        return window_end(token // self.dilation, length, **self._shape)

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
        group = query // self.query_ratio % self.dilation
        token = (self.start(query) + slot) * self.dilation + group
        return token % self.length if self.is_periodic else token

    def slot_is_visible(self, query: Ints, slot: Ints) -> Bools:
        """Whether window slot ``slot`` of ``query`` holds a key (always, unless causal)."""
        return self.start(query) + slot < self.end(query)

    def slot_of(self, query: Ints, key: Ints) -> Ints:
        """Window slot of token ``key`` of the query's dilation group; out of range if not seen."""
        slot = key // self.dilation - self.start(query)
        return slot % (self.length // self.dilation) if self.is_periodic else slot

    def is_neighbor(self, query: Ints, key: Ints) -> Bools:
        """Whether ``query`` sees the key token ``key``."""
        d, slot = self.dilation, self.slot_of(query, key)
        same_group = key % d == query // self.query_ratio % d
        return same_group & (slot >= 0) & (slot < self.end(query) - self.start(query))

    def slot_bias_index(self, query: Ints, slot: Ints) -> Ints:
        """Index into the ``2 * kernel_size - 1`` biases of the axis for a window slot."""
        position = query // self.query_ratio // self.dilation
        return self.start(query) + slot - position + self.kernel_size - 1

    def bias_index(self, query: Ints, key: Ints) -> Ints:
        """Index into the ``2 * kernel_size - 1`` relative position biases of the axis.

        ``key - query // query_ratio`` in units of the dilation, counted as the window goes round,
        and shifted to start at 0. In range wherever `is_neighbor` holds.
        """
        return self.slot_bias_index(query, self.slot_of(query, key))


@dataclasses.dataclass(frozen=True, slots=True)
class Neighborhood:
    """The Cartesian product of one to three `AxisWindow`, over tokens flattened row-major."""

    axes: tuple[AxisWindow, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Key tokens along each axis, of the whole."""
        return tuple(axis.length for axis in self.axes)

    @property
    def query_shape(self) -> tuple[int, ...]:
        """Queries at hand along each axis."""
        return tuple(axis.num_queries for axis in self.axes)

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Keys at hand along each axis."""
        return tuple(axis.num_keys for axis in self.axes)

    @property
    def is_plain(self) -> bool:
        """Whether every axis is; see `AxisWindow.is_plain`."""
        return all(axis.is_plain for axis in self.axes)

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

    def dense_bias_index(self) -> tuple[Int[np.ndarray, "Tq Tk"], ...]:
        """Per axis, the bias index of each query and key, clipped where they are not neighbors."""
        shape = (math.prod(self.query_shape), math.prod(self.key_shape))
        queries, keys = self._query_tokens(), self._key_tokens()
        index = (
            axis.bias_index(query[:, None], key[None])
            for axis, query, key in zip(self.axes, queries, keys, strict=True)
        )
        return tuple(
            np.clip(np.broadcast_to(x, shape), 0, 2 * axis.kernel_size - 2)
            for axis, x in zip(self.axes, index, strict=True)
        )

    def neighbor_table(self) -> tuple[Int[np.ndarray, "Tq K"], Bool[np.ndarray, "Tq K"]]:
        """Where the key in each window slot is among those at hand, and whether there is one.

        Slots are in row-major order over the window. An empty slot (causal windows only) points at
        key 0.
        """
        num_queries = math.prod(self.query_shape)
        slots = np.unravel_index(np.arange(self.num_neighbors)[None, :], self.kernel_size)
        keys, visible = [], np.ones((num_queries, self.num_neighbors), bool)
        for axis, query, slot in zip(self.axes, self._query_tokens(), slots, strict=True):
            seen = axis.slot_is_visible(query[:, None], slot)
            key = axis.neighbor(query[:, None], slot) - axis.key_range[0]
            keys.append(np.where(seen, key % axis.length, 0))
            visible &= seen
        flat = np.ravel_multi_index(tuple(keys), self.key_shape)
        return np.where(visible, flat, 0), visible

    def token_numbers(self) -> tuple[Int[np.ndarray, "Tq"], Int[np.ndarray, "Tk"]]:
        """A number for each query at hand and for each key at hand, whatever else is at hand.

        Queries that lie on one key token have its number and, one after the other, as many more as
        there are tokens.
        """
        ratio = tuple(axis.query_ratio for axis in self.axes)
        queries, keys = self._query_tokens(), tuple(self._key_tokens())
        token = tuple(query // r for query, r in zip(queries, ratio, strict=True))
        part = tuple(query % r for query, r in zip(queries, ratio, strict=True))
        numbers = np.ravel_multi_index(token, self.shape)
        numbers = numbers + self.num_tokens * np.ravel_multi_index(part, ratio)
        return numbers, np.ravel_multi_index(keys, self.shape)

    def _query_tokens(self) -> list[Int[np.ndarray, "Tq"]]:
        """Along each axis, the index of every query at hand."""
        grids = np.meshgrid(*(axis.query_tokens for axis in self.axes), indexing="ij")
        return [grid.reshape(-1) for grid in grids]

    def _key_tokens(self) -> list[Int[np.ndarray, "Tk"]]:
        """Along each axis, the token of every key at hand."""
        grids = np.meshgrid(*(axis.key_tokens for axis in self.axes), indexing="ij")
        return [grid.reshape(-1) for grid in grids]
