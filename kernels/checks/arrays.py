"""Rules of arrays and numbers."""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp

from natjax.kernels.neighborhood import Neighborhood

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def tokens(name: str, array: jax.Array, ndim: int) -> tuple[int, ...]:
    """Token layout of a ``[B, *X, N, D]`` array.

    Raises:
      ValueError: wrong rank, an empty dimension, one whose size is not known, or a dtype that is
        not a supported float.
    """
    layout = {1: "[B, L, N, D]", 2: "[B, H, W, N, D]", 3: "[B, T, H, W, N, D]"}[ndim]
    if array.ndim != ndim + 3:
        raise ValueError(
            f"{name} must have {ndim + 3} dimensions {layout}; got {array.ndim}, "
            f"shape {array.shape}"
        )
    if not all(isinstance(size, int) for size in array.shape[1:]):
        raise ValueError(
            f"{name} must have known sizes along all dimensions but the batch; got shape"
            f" {array.shape}: export a program for each size of map"
        )
    if 0 in array.shape[1:]:
        raise ValueError(
            f"{name} must have no empty dimension but the batch; got shape {array.shape}"
        )
    if array.dtype.name not in _FLOATS:
        raise ValueError(f"{name} must have one of the dtypes {_FLOATS}; got {array.dtype.name}")
    return array.shape[1:-2]


def key_mask(array: jax.Array | None, key_name: str, key: jax.Array) -> None:
    """Check a mask of keys: one bit a token.

    Raises:
      ValueError: not booleans, or not ``[B, *X]`` of the keys.
    """
    if array is None:
        return
    if array.shape != key.shape[:-2] or array.dtype != jnp.bool_:
        raise ValueError(
            f"key_mask must be booleans with the batch and tokens of {key_name}, "
            f"{key.shape[:-2]}; got {array.dtype.name} of shape {array.shape}"
        )


def dropout(rate: float, key: jax.Array | None) -> None:
    """Check the rate of dropout and its key.

    Raises:
      ValueError: a rate that is none, or no key for a rate above 0.
    """
    is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not is_number or not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must be a number of at least 0 and below 1; got {rate!r}")
    if rate and key is None:
        raise ValueError(
            f"dropout_key must be a key of jax.random where dropout_rate > 0; got None and "
            f"dropout_rate={rate}"
        )


def soft_cap(value: float | None) -> float | None:
    """Check the cap of logits.

    Raises:
      ValueError: neither None nor a finite number above 0.
    """
    if value is None:
        return None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"logit_soft_cap must be None or a finite number above 0; got {value!r}")
    return float(value)


def sinks(array: jax.Array | None, query: jax.Array) -> None:
    """Check attention sinks: one logit a query head.

    Raises:
      ValueError: wrong shape or not a supported float.
    """
    if array is None:
        return
    if array.shape != query.shape[-2:-1] or array.dtype.name not in _FLOATS:
        raise ValueError(
            f"sinks must be one logit for each head, shape {query.shape[-2:-1]} and one of the "
            f"dtypes {_FLOATS}; got {array.dtype.name} of shape {array.shape}"
        )


def same_tokens(name: str, array: jax.Array, like_name: str, like: jax.Array) -> None:
    """Check that two ``[B, *X, N, D]`` arrays share batch, tokens and dtype.

    Raises:
      ValueError: they do not.
    """
    if array.shape[:-2] != like.shape[:-2]:
        raise ValueError(
            f"{name} must have the batch and tokens of {like_name}; got shapes {array.shape} and "
            f"{like.shape}"
        )
    same_dtype(name, array, like_name, like)


def same_batch(name: str, array: jax.Array, like_name: str, like: jax.Array) -> None:
    """Check that two arrays share batch and dtype.

    Raises:
      ValueError: they do not.
    """
    if array.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} must have the batch of {like_name}; got shapes {array.shape} and {like.shape}"
        )
    same_dtype(name, array, like_name, like)


def same_dtype(name: str, array: jax.Array, like_name: str, like: jax.Array) -> None:
    """Check that two arrays share their dtype.

    Raises:
      ValueError: they do not.
    """
    if array.dtype != like.dtype:
        raise ValueError(
            f"{name} must have the dtype of {like_name}; got {array.dtype.name} and "
            f"{like.dtype.name}"
        )


def same_size(name: str, array: jax.Array, like_name: str, like: jax.Array, what: str) -> None:
    """Check that two arrays agree in ``what``: "heads" (axis -2) or "head size" (axis -1).

    Raises:
      ValueError: they do not.
    """
    axis = {"heads": -2, "head size": -1}[what]
    if array.shape[axis] != like.shape[axis]:
        raise ValueError(
            f"{name} must have the {what} of {like_name}; got shapes {array.shape} and {like.shape}"
        )


def grouped_heads(array: jax.Array, like: jax.Array, name: str, like_name: str) -> None:
    """Check that every head of ``array`` serves the same number of heads of ``like``.

    Raises:
      ValueError: it does not.
    """
    if like.shape[-2] % array.shape[-2]:
        raise ValueError(
            f"the heads of {like_name} must be a multiple of the heads of {name}; got "
            f"{like.shape[-2]} and {array.shape[-2]}"
        )


def query_and_key(ndim: int, query: jax.Array, key: jax.Array, *, apart: bool) -> None:
    """Check queries and keys against one another.

    Args:
      ndim: token axes.
      query: queries.
      key: keys.
      apart: whether their tokens may differ.

    Raises:
      ValueError: wrong rank, dtype, batch, tokens, head size or heads.
    """
    tokens("query", query, ndim)
    tokens("key", key, ndim)
    (same_batch if apart else same_tokens)("key", key, "query", query)
    same_size("key", key, "query", query, "head size")
    grouped_heads(key, query, "key", "query")


def flat_keys(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    """Check queries on any token axes against keys and values on one.

    Raises:
      ValueError: wrong rank, dtype, batch, tokens, head size or heads.
    """
    if query.ndim < 4 or query.dtype.name not in _FLOATS:
        raise ValueError(
            f"query must have at least 4 dimensions [B, *X, N, D] and one of the dtypes {_FLOATS}; "
            f"got {query.dtype.name} of shape {query.shape}"
        )
    tokens("key", key, 1)
    tokens("value", value, 1)
    same_batch("key", key, "query", query)
    same_tokens("value", value, "key", key)
    same_size("key", key, "query", query, "head size")
    same_size("value", value, "key", key, "heads")
    grouped_heads(key, query, "key", "query")


def weights(array: jax.Array, neighborhood: Neighborhood) -> None:
    """Check that attention weights have one entry for each window slot.

    Raises:
      ValueError: they do not.
    """
    if array.shape[-1] != neighborhood.num_neighbors:
        raise ValueError(
            f"weights must have the product of kernel_size={neighborhood.kernel_size}, "
            f"{neighborhood.num_neighbors}, entries along the last axis; got shape {array.shape}"
        )


def bias(rpb: jax.Array | None, query: jax.Array, neighborhood: Neighborhood) -> None:
    """Check relative position biases against heads and window.

    Raises:
      ValueError: wrong shape or not a supported float.
    """
    if rpb is None:
        return
    expected = (query.shape[-2], *neighborhood.bias_shape)
    if rpb.shape != expected:
        raise ValueError(
            f"rpb must have shape (heads, 2 * kernel_size - 1, ...) = {expected}; got {rpb.shape}"
        )
    if rpb.dtype.name not in _FLOATS:
        raise ValueError(f"rpb must have one of the dtypes {_FLOATS}; got {rpb.dtype.name}")


def additional(
    keys: jax.Array | None, values: jax.Array | None, key: jax.Array, value: jax.Array
) -> None:
    """Check additional keys and values: both or none, ``[B, E, M, D]`` and ``[B, E, M, Dv]``.

    Raises:
      ValueError: only one given, or a shape or dtype that does not fit ``key`` and ``value``.
    """
    if (keys is None) != (values is None):
        given, missing = "additional_keys", "additional_values"
        if keys is None:
            given, missing = missing, given
        raise ValueError(
            f"additional_keys and additional_values must be given together; got only {given} "
            f"(no {missing})"
        )
    if keys is None or values is None:
        return
    for name, array, like_name, like in (
        ("additional_keys", keys, "key", key),
        ("additional_values", values, "value", value),
    ):
        expected = (like.shape[0], keys.shape[1] if keys.ndim > 1 else 0, *like.shape[-2:])
        if array.shape != expected or array.shape[1] == 0:
            raise ValueError(
                f"{name} must have shape (batch, additional tokens >= 1, heads, head size of "
                f"{like_name}) = {('B', 'E', *like.shape[-2:])} with B={like.shape[0]} and the "
                f"same E in both; got {array.shape}"
            )
        same_dtype(name, array, like_name, like)


def attention_scale(scale: float | None, head_size: int) -> float:
    """Factor on ``query . key``; None means ``head_size ** -0.5``.

    Raises:
      ValueError: not a finite number, or 0 (which NATTEN silently takes for the default).
    """
    if scale is None:
        return head_size**-0.5
    rule = "scale must be None (head_size ** -0.5) or a finite non-zero number"
    if isinstance(scale, jax.Array):
        raise ValueError(f"{rule}; got {scale!r}; for a learned scale, multiply the query by it")
    is_number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not is_number or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"{rule}; got {scale!r}")
    return float(scale)
