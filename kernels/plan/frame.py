"""Queries and keys at hand along an axis, as positions of arrays.

`natjax.kernels.neighborhood` speaks of tokens of a whole axis. Arrays hold a part of them, and
their dilation groups are laid out one after the other: index ``i`` of an array is in group
``i % dilation`` at position ``i // dilation``, whatever its token is. Here windows are those of the
axis, in positions of the array of keys.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.blocks import Rows


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AxisFrame:
    """Where the windows of an axis are in arrays of the queries and keys at hand.

    Attributes:
      window: the neighborhood along the axis, one query a key token.
      query_positions: positions of the longest dilation group of queries.
      key_positions: positions of the longest dilation group of keys.
      padding: places before the first key at hand, so that queries see keys of their own group.
      ahead: position among the keys of the token that a query lies on, less the query's own.
      start: first key position that each query of each group sees, for each origin. Below 0, or
        further right than there are positions, where a window goes round.
      end: position just past the last one.
    """

    window: AxisWindow
    query_positions: int
    key_positions: int
    padding: int
    ahead: int
    start: Int[np.ndarray, "P d q"]
    end: Int[np.ndarray, "P d q"]

    def positions(self, of: Rows) -> int:
        """Positions of the longest dilation group at hand."""
        return self.query_positions if of == "queries" else self.key_positions

    def tokens(self, of: Rows) -> tuple[int, int]:
        """Places before the first token at hand, and tokens at hand."""
        if of == "queries":
            return 0, self.window.num_queries
        return self.padding, self.window.num_keys

    def exists(self, of: Rows) -> Bool[np.ndarray, "d positions"]:
        """Which positions of each dilation group have a token at hand."""
        before, tokens = self.tokens(of)
        group = np.arange(self.window.dilation)[:, None]
        place = np.arange(self.positions(of)) * self.window.dilation + group
        return (before <= place) & (place < before + tokens)

    def split_keys(self, x: Array, axis: int) -> Array:
        """Replace an axis of keys by ``(dilation, key positions)``."""
        return jnp.swapaxes(self.split_key_positions(x, axis), axis, axis + 1)

    def split_key_positions(self, x: Array, axis: int) -> Array:
        """Replace an axis of keys by ``(key positions, dilation)``, which moves nothing."""
        if self.window.is_circle:
            x = jnp.roll(x, self.padding, axis=axis) if self.padding else x
        else:
            x = _pad(x, axis, self.padding, 0)
        return split_positions(x, axis, self.window.dilation, self.key_positions)


@functools.cache
def axis_frame(window: AxisWindow) -> AxisFrame:
    """The frame of a window.

    Raises:
      ValueError: a query sees a key that is not at hand, or lies between keys.
    """
    if window.query_ratio != 1:
        raise ValueError(f"a frame has one query a key token; got {window.query_ratio}")
    window.require_keys()
    d, first_query = window.dilation, window.query_range[0]
    padding = (window.key_range[0] - first_query) % d
    first_key = window.aligned_keys[0] - padding
    positions = -(-window.num_queries // d)
    group = np.arange(d)[:, None]
    # Positions past the end of a group repeat its last query, or the first query of all where the
    # group has none; their results are thrown away.
    index = np.arange(positions)[None] * d + group
    index = np.maximum(np.where(index < window.num_queries, index, index - d), 0)
    origin = np.asarray(window.origins)[:, None, None]
    query = origin + first_query + index
    token = window.start(query) * d + query % d - origin
    start = (token - first_key - index % d) // d
    return AxisFrame(
        window=window,
        query_positions=positions,
        key_positions=-(-(window.num_keys + (0 if window.is_circle else padding)) // d),
        padding=padding,
        ahead=(first_query - first_key) // d,
        start=start,
        end=start + window.end(query) - window.start(query),
    )


def split_groups(x: Array, axis: int, dilation: int, positions: int) -> Array:
    """Replace a token axis by ``(dilation, positions)``, zero-padded at the end."""
    return jnp.swapaxes(split_positions(x, axis, dilation, positions), axis, axis + 1)


def merge_groups(x: Array, axis: int, tokens: int) -> Array:
    """Inverse of `split_groups`, on the axes ``axis`` and ``axis + 1``."""
    return merge_positions(jnp.swapaxes(x, axis, axis + 1), axis, tokens)


def split_positions(x: Array, axis: int, dilation: int, positions: int) -> Array:
    """Replace a token axis by ``(positions, dilation)``, zero-padded at the end."""
    x = _pad(x, axis, 0, positions * dilation - x.shape[axis])
    return x.reshape(*x.shape[:axis], positions, dilation, *x.shape[axis + 1 :])


def merge_positions(x: Array, axis: int, tokens: int) -> Array:
    """Inverse of `split_positions`, on the axes ``axis`` and ``axis + 1``."""
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, tokens, axis=axis)


def cut_round(x: Array, axis: int, start: int, stop: int) -> Array:
    """Positions ``start`` to ``stop`` of an axis, from the other end where they are outside."""
    length = x.shape[axis]
    pieces = []
    while start < stop:
        begin = start % length
        end = min(begin + stop - start, length)
        pieces.append(jax.lax.slice_in_dim(x, begin, end, axis=axis))
        start += end - begin
    return jnp.concatenate(pieces, axis=axis) if len(pieces) > 1 else pieces[0]


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    if not before and not after:
        return x
    padding = [(0, 0)] * x.ndim
    padding[axis] = (before, after)
    return jnp.pad(x, padding)
