"""``natten.functional``: the unfused ops of 0.14 to 0.19, heads first, and not scaled.

``[B, heads, *tokens, D]``; logits and weights are ``[B, heads, *tokens, K + E]`` for ``K`` places
in the window, row by row, and ``E`` additional keys after them. Scale the query, or the logits,
yourself: these ops never did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

import natjax
from natjax.compat.natten.fused import na1d, na2d, na3d

__all__ = [
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
]

type _Sizes = int | Sequence[int]
type _Bools = bool | Sequence[bool]


def _heads_last(x: Float[Array, "B N *X D"]) -> Float[Array, "B *X N D"]:
    return jnp.moveaxis(x, 1, -2)


def _heads_first(x: Float[Array, "B *X N D"]) -> Float[Array, "B N *X D"]:
    return jnp.moveaxis(x, -2, 1)


def _qk(axes: int, op: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``na*d_qk``."""

    def qk(
        query: Float[Array, "B N *X D"],
        key: Float[Array, "B N *X D"],
        kernel_size: _Sizes,
        dilation: _Sizes = 1,
        additional_keys: Float[Array, "B N E D"] | None = None,
        is_causal: _Bools = False,
        rpb: Float[Array, "N *R"] | None = None,
    ) -> Float[Array, "B N *X K"]:
        logits = op(
            _heads_last(query),
            _heads_last(key),
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
            rpb=rpb,
            scale=1.0,
        )
        logits = _heads_first(logits)
        if additional_keys is None:
            return logits
        extra = jnp.einsum("bn...d,bned->bn...e", query, additional_keys)
        return jnp.concatenate([logits, extra.astype(logits.dtype)], axis=-1)

    qk.__name__ = qk.__qualname__ = f"na{axes}d_qk"
    qk.__doc__ = f"""Logits ``<query, key> + rpb`` of NATTEN's unfused op on {axes} token axes.

    Args:
      query: queries, scaled already where they are to be.
      key: keys.
      kernel_size: window size.
      dilation: distance between neighboring keys.
      additional_keys: keys that every query sees, after those of the window.
      is_causal: whether later keys are hidden; their places hold ``-inf``.
      rpb: relative position bias.

    Raises:
      ValueError: as `natjax.na{axes}d_qk`.
    """
    return qk


def _av(axes: int, op: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``na*d_av``."""

    def av(
        attn: Float[Array, "B N *X K"],
        value: Float[Array, "B N *X D"],
        kernel_size: _Sizes,
        dilation: _Sizes = 1,
        additional_values: Float[Array, "B N E D"] | None = None,
        is_causal: _Bools = False,
    ) -> Float[Array, "B N *X D"]:
        extra = 0 if additional_values is None else additional_values.shape[2]
        window = attn[..., : attn.shape[-1] - extra]
        out = op(
            _heads_last(window),
            _heads_last(value),
            kernel_size,
            dilation=dilation,
            is_causal=is_causal,
        )
        out = _heads_first(out)
        if additional_values is None:
            return out
        more = jnp.einsum("bn...e,bned->bn...d", attn[..., window.shape[-1] :], additional_values)
        return out + more.astype(out.dtype)

    av.__name__ = av.__qualname__ = f"na{axes}d_av"
    av.__doc__ = f"""Weighted sums of values of NATTEN's unfused op on {axes} token axes.

    Args:
      attn: weights, as the softmax of ``na{axes}d_qk`` gives them.
      value: values.
      kernel_size: window size.
      dilation: distance between neighboring keys.
      additional_values: values of the additional keys.
      is_causal: whether later keys are hidden.

    Raises:
      ValueError: as `natjax.na{axes}d_av`.
    """
    return av


na1d_qk, na2d_qk, na3d_qk = (
    _qk(axes, op) for axes, op in enumerate((natjax.na1d_qk, natjax.na2d_qk, natjax.na3d_qk), 1)
)
na1d_av, na2d_av, na3d_av = (
    _av(axes, op) for axes, op in enumerate((natjax.na1d_av, natjax.na2d_av, natjax.na3d_av), 1)
)


def na1d_qk_with_bias(
    query: Float[Array, "B N L D"],
    key: Float[Array, "B N L D"],
    bias: Float[Array, "N R"] | None,
    kernel_size: int,
    dilation: int = 1,
    additional_keys: Float[Array, "B N E D"] | None = None,
) -> Float[Array, "B N L K"]:
    """``na1d_qk`` of 0.15, with the bias third."""
    return na1d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na2d_qk_with_bias(
    query: Float[Array, "B N H W D"],
    key: Float[Array, "B N H W D"],
    bias: Float[Array, "N R0 R1"] | None,
    kernel_size: _Sizes,
    dilation: _Sizes = 1,
    additional_keys: Float[Array, "B N E D"] | None = None,
) -> Float[Array, "B N H W K"]:
    """``na2d_qk`` of 0.15, with the bias third."""
    return na2d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na3d_qk_with_bias(
    query: Float[Array, "B N T H W D"],
    key: Float[Array, "B N T H W D"],
    bias: Float[Array, "N R0 R1 R2"] | None,
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int = 1,
    dilation: int = 1,
    additional_keys: Float[Array, "B N E D"] | None = None,
) -> Float[Array, "B N T H W K"]:
    """``na3d_qk`` of 0.15: a window for the depth, and one for height and width."""
    sizes, dilations = (kernel_size_d, *(kernel_size,) * 2), (dilation_d, *(dilation,) * 2)
    return na3d_qk(query, key, sizes, dilations, additional_keys, rpb=bias)


def natten1dqk(
    query: Float[Array, "B N L D"], key: Float[Array, "B N L D"], kernel_size: int, dilation: int
) -> Float[Array, "B N L K"]:
    """``na1d_qk`` of 0.14."""
    return na1d_qk(query, key, kernel_size, dilation)


def natten2dqk(
    query: Float[Array, "B N H W D"],
    key: Float[Array, "B N H W D"],
    kernel_size: int,
    dilation: int,
) -> Float[Array, "B N H W K"]:
    """``na2d_qk`` of 0.14."""
    return na2d_qk(query, key, kernel_size, dilation)


def natten1dav(
    attn: Float[Array, "B N L K"], value: Float[Array, "B N L D"], kernel_size: int, dilation: int
) -> Float[Array, "B N L D"]:
    """``na1d_av`` of 0.14."""
    return na1d_av(attn, value, kernel_size, dilation)


def natten2dav(
    attn: Float[Array, "B N H W K"],
    value: Float[Array, "B N H W D"],
    kernel_size: int,
    dilation: int,
) -> Float[Array, "B N H W D"]:
    """``na2d_av`` of 0.14."""
    return na2d_av(attn, value, kernel_size, dilation)


def natten3dqk(
    query: Float[Array, "B N T H W D"],
    key: Float[Array, "B N T H W D"],
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> Float[Array, "B N T H W K"]:
    """``na3d_qk`` of 0.15: a window for the depth, and one for height and width."""
    return na3d_qk_with_bias(query, key, None, kernel_size_d, kernel_size, dilation_d, dilation)


def natten3dav(
    attn: Float[Array, "B N T H W K"],
    value: Float[Array, "B N T H W D"],
    kernel_size_d: int,
    kernel_size: int,
    dilation_d: int,
    dilation: int,
) -> Float[Array, "B N T H W D"]:
    """``na3d_av`` of 0.15: a window for the depth, and one for height and width."""
    sizes, dilations = (kernel_size_d, *(kernel_size,) * 2), (dilation_d, *(dilation,) * 2)
    return na3d_av(attn, value, sizes, dilations)


natten1dqkrpb = na1d_qk_with_bias
natten2dqkrpb = na2d_qk_with_bias
natten3dqkrpb = na3d_qk_with_bias
