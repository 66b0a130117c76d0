"""NATTEN's fused ops: heads last, ``[B, *tokens, heads, head size]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array, Float

import natjax

# What chooses NATTEN's kernels, in any of its versions; it does nothing here.
_TUNING = {
    "attention_kwargs",
    "xformers_kwargs",
    "backend",
    "q_tile_shape",
    "kv_tile_shape",
    "backward_q_tile_shape",
    "backward_kv_tile_shape",
    "backward_kv_splits",
    "backward_use_pt_reduction",
    "run_persistent_kernel",
    "kernel_schedule",
    "torch_compile",
}


def _op(name: str, op: Callable[..., Any], tokens: str) -> Callable[..., Any]:
    """Make the fused op of a number of axes."""

    def fused(
        query: Float[Array, "B *X N D"],
        key: Float[Array, "B *X M D"],
        value: Float[Array, "B *X M Dv"],
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = 1,
        dilation: int | Sequence[int] | None = 1,
        is_causal: bool | Sequence[bool] | None = False,
        rpb: Float[Array, "N *R"] | None = None,
        scale: float | int | None = None,
        additional_keys: Float[Array, "B E M D"] | None = None,
        additional_values: Float[Array, "B E M Dv"] | None = None,
        return_lse: bool = False,
        **tuning: Any,
    ) -> Any:
        for argument in tuning:
            if argument not in _TUNING:
                raise TypeError(f"{name} has no argument {argument!r}, in no version of NATTEN")
        return op(
            query,
            key,
            value,
            kernel_size,
            stride=1 if stride is None else stride,
            dilation=1 if dilation is None else dilation,
            is_causal=False if is_causal is None else is_causal,
            rpb=rpb,
            scale=scale or None,
            additional_keys=additional_keys,
            additional_values=additional_values,
            return_lse=return_lse,
        )

    fused.__name__ = fused.__qualname__ = name
    fused.__doc__ = f"""NATTEN's ``{name}``, over ``[B, {tokens}, heads, head size]``.

    `natjax.{name}` with NATTEN's reading of what is left out: ``scale=0`` and None are
    ``D ** -0.5``, and None is 1 or False elsewhere. ``rpb`` is of 0.17 and before.

    Raises:
      TypeError: an argument that no version of NATTEN has.
      ValueError: as `natjax.{name}`.
    """
    return fused


na1d = _op("na1d", natjax.na1d, "length")
na2d = _op("na2d", natjax.na2d, "height, width")
na3d = _op("na3d", natjax.na3d, "depth, height, width")


def attention(
    query: Float[Array, "B T N D"],
    key: Float[Array, "B S M D"],
    value: Float[Array, "B S M Dv"],
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Any:
    """NATTEN's ``attention``: of every query to every key, or to those not after it.

    Args:
      query: queries.
      key: keys; heads are grouped as in `natjax.na2d`.
      value: values.
      is_causal: whether later keys are hidden; there must be as many keys as queries then.
      scale: factor on ``<query, key>``; 0 and None are ``D ** -0.5``.
      return_lse: whether to return the log-sum-exp too.
      **options: what chooses NATTEN's kernels does nothing.

    Raises:
      NotImplementedError: sequences packed into one (``seqlens_Q`` and its like), or causal
        attention of another number of keys.
    """
    packed = [name for name, x in options.items() if "seqlen" in name and x is not None]
    if packed:
        raise NotImplementedError(
            f"{packed[0]}: sequences packed into one are not supported; pad them to one length and"
            " hide the padding with natjax.na1d(..., key_mask=...)"
        )
    scale = scale or None
    if not is_causal:
        return natjax.attention(query, key, value, scale=scale, return_lse=return_lse)
    if key.shape[1] != query.shape[1]:
        raise NotImplementedError(
            "is_causal needs as many keys as queries; got"
            f" {key.shape[1]} and {query.shape[1]}; natjax.na1d takes query_offset"
        )
    return natjax.na1d(
        query, key, value, key.shape[1], is_causal=True, scale=scale, return_lse=return_lse
    )


def merge_attentions(
    outputs: Sequence[Float[Array, "*X N Dv"]],
    lse_tensors: Sequence[Float[Array, "*X N"]],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Float[Array, "*X N Dv"], Float[Array, "*X N"]]:
    """NATTEN's ``merge_attentions``; gradients are right without its fix.

    Raises:
      ValueError: as `natjax.merge_attentions`.
    """
    del torch_compile, use_autograd_fix
    return natjax.merge_attentions(outputs, lse_tensors)
