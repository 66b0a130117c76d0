"""Rules of windows, and of where queries and keys lie."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from natjax.kernels.neighborhood import AxisWindow, Neighborhood


def axis_ints(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Canonical form of an "int or one per axis" argument, each at least 1.

    Raises:
      ValueError: not an int or a sequence of ``ndim`` ints, or one is below 1.
    """
    rule = f"{name} must be an integer >= 1 or {ndim} of them (one per axis)"
    entries = _per_axis(rule, value, ndim)
    try:
        # bool is an int to Python; as a size it is a mistake.
        if any(isinstance(entry, bool | np.bool_) for entry in entries):
            raise TypeError
        result = tuple(operator.index(entry) for entry in entries)
    except TypeError:
        raise ValueError(f"{rule}; got {value!r}") from None
    if min(result) < 1:
        raise ValueError(f"{rule}; got {value!r}")
    return result


def axis_bools(name: str, value: bool | Sequence[bool], ndim: int) -> tuple[bool, ...]:
    """Canonical form of a "bool or one per axis" argument.

    Raises:
      ValueError: not a bool or a sequence of ``ndim`` bools.
    """
    rule = f"{name} must be a bool or {ndim} of them (one per axis)"
    entries = _per_axis(rule, value, ndim)
    if not all(isinstance(entry, bool | np.bool_) for entry in entries):
        raise ValueError(f"{rule}; got {value!r}")
    return tuple(bool(entry) for entry in entries)


def _per_axis(rule: str, value: Any, ndim: int) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * ndim
    if len(value) != ndim:
        raise ValueError(f"{rule}; got {value!r}")
    return tuple(value)


def neighborhood(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    *,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
) -> Neighborhood:
    """The neighborhood on a token layout, from arguments in any of their forms.

    Args:
      shape: keys at hand along each axis.
      kernel_size: as all that follow, see `natjax.na2d`.
      stride: queries that share a window.
      dilation: distance between neighboring keys.
      is_causal: whether keys after the query are hidden.
      is_periodic: whether an axis is a circle.
      query_ratio: queries for each key.
      query_offset: first query at hand.
      key_offset: first key at hand.
      length: keys of the whole.
      queries: queries at hand along each axis; None is as many as there are keys.

    Raises:
      ValueError: a malformed argument, a stride above the window, a dilated window that does not
        fit the layout, or queries and keys that do not lie in it or miss one another.
    """
    ndim = len(shape)
    kernel = axis_ints("kernel_size", kernel_size, ndim)
    strides = axis_ints("stride", stride, ndim)
    dilations = axis_ints("dilation", dilation, ndim)
    causal = axis_bools("is_causal", is_causal, ndim)
    periodic = axis_bools("is_periodic", is_periodic, ndim)
    ratio = axis_ints("query_ratio", query_ratio, ndim)
    at_hand = _at_hand(shape, queries or shape, ratio, query_offset, key_offset, length)
    windows = [
        AxisWindow(
            length=n,
            kernel_size=kernel[i],
            stride=strides[i],
            dilation=dilations[i],
            is_causal=causal[i],
            is_periodic=periodic[i],
            query_ratio=ratio[i],
            queries=queries,
            keys=keys,
        )
        for i, (n, queries, keys) in enumerate(at_hand)
    ]
    _check_axes(windows)
    return Neighborhood(tuple(windows))


def _check_axes(windows: list[AxisWindow]) -> None:
    """Check what arguments must be to one another, axis by axis."""

    def along_axes(name: str) -> tuple[Any, ...]:
        return tuple(getattr(window, name) for window in windows)

    tokens, kernel_size = along_axes("length"), along_axes("kernel_size")
    stride, dilation = along_axes("stride"), along_axes("dilation")
    for axis, window in enumerate(windows):
        if window.stride > window.kernel_size:
            raise ValueError(
                f"stride must not exceed kernel_size along any axis; got stride={stride} and "
                f"kernel_size={kernel_size} (axis {axis})"
            )
        if window.kernel_size * window.dilation > window.length:
            raise ValueError(
                f"kernel_size * dilation must not exceed the tokens along any axis; got "
                f"kernel_size={kernel_size}, dilation={dilation} and tokens {tokens} "
                f"(axis {axis}); pad the input or use a smaller window"
            )
        if window.is_periodic and window.is_causal:
            raise ValueError(
                "is_periodic and is_causal must not both hold along an axis, as nothing is later "
                f"on a circle; got is_periodic={along_axes('is_periodic')} and "
                f"is_causal={along_axes('is_causal')} (axis {axis})"
            )
        if window.is_periodic and window.length % window.dilation:
            raise ValueError(
                f"dilation must divide the tokens along a periodic axis; got dilation={dilation} "
                f"and tokens {tokens} (axis {axis})"
            )
        window.require_keys()


type _Range = tuple[int, int]


def _at_hand(
    keys: Sequence[int],
    queries: Sequence[int],
    ratio: tuple[int, ...],
    query_offset: int | Sequence[int] | None,
    key_offset: int | Sequence[int] | None,
    length: int | Sequence[int] | None,
) -> list[tuple[int, _Range | None, _Range | None]]:
    """Along each axis the tokens of the whole, and the queries and keys at hand; None for all."""
    ndim = len(keys)
    first_query = (
        (0,) * ndim if query_offset is None else _offsets("query_offset", query_offset, ndim)
    )
    first_key = (0,) * ndim if key_offset is None else _offsets("key_offset", key_offset, ndim)
    if length is None:
        whole = tuple(f + n for f, n in zip(first_key, keys, strict=True))
    else:
        whole = axis_ints("length", length, ndim)
    result: list[tuple[int, _Range | None, _Range | None]] = []
    for i, n in enumerate(whole):
        if query_offset is None and queries[i] != n * ratio[i]:
            raise ValueError(
                f"query must have query_ratio={ratio} times the tokens that there are, {whole}, "
                f"unless query_offset says which of them; got {tuple(queries)}"
            )
        if key_offset is None and keys[i] != n:
            raise ValueError(
                f"key must have all tokens that there are, length={whole}, unless key_offset says "
                f"which of them; got {tuple(keys)}"
            )
        if first_query[i] % ratio[i] or queries[i] % ratio[i]:
            raise ValueError(
                f"query_offset and the queries must be multiples of query_ratio; got "
                f"query_offset={first_query}, queries {tuple(queries)} and query_ratio={ratio}"
            )
        if not 0 <= first_query[i] <= n * ratio[i] - queries[i]:
            raise ValueError(
                f"query_offset must be at least 0, and with the queries end within the {n} tokens "
                f"that there are, times query_ratio; got query_offset={first_query}, queries "
                f"{tuple(queries)} and query_ratio={ratio} (axis {i})"
            )
        at_hand = (first_query[i], first_query[i] + queries[i])
        held = (first_key[i], first_key[i] + keys[i])
        result.append(
            (n, None if at_hand == (0, n * ratio[i]) else at_hand, None if held == (0, n) else held)
        )
    return result


def _offsets(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    rule = f"{name} must be None, an integer or {ndim} of them (one per axis)"
    try:
        return tuple(operator.index(entry) for entry in _per_axis(rule, value, ndim))
    except TypeError:
        raise ValueError(f"{rule}; got {value!r}") from None
