"""Attention to all keys, with the arguments of the ops of neighborhoods."""

from __future__ import annotations

import functools
import math
from typing import Any

from jaxtyping import Array, Bool, Float

from natjax.kernels import checks
from natjax.kernels.api.calls import shown, with_sinks
from natjax.kernels.full_attention import attend_to_all
from natjax.kernels.sharding.device_parts import on_device_parts
from natjax.kernels.sharding.explicit import typed_like_first


def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B S M D"],
    value: Float[Array, "B S M Dv"],
    *,
    scale: float | None = None,
    key_mask: Bool[Array, "B S"] | None = None,
    sinks: Float[Array, "N"] | None = None,
    logit_soft_cap: float | None = None,
    return_lse: bool = False,
) -> Float[Array, "B *X N Dv"] | tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """Attention of every query to every key: registers, text tokens, the full case.

    With ``return_lse`` it is a part of a larger attention, which `natjax.merge_attentions` joins
    with neighborhoods. It is plain JAX for any device, with derivatives of any order in both modes,
    and never holds the logits of all queries: some at a time are computed, and anew in reverse.

    Args:
      query: queries on any number of token axes.
      key: keys; ``M`` heads, where ``M`` divides ``N``, as in `natjax.na2d`.
      value: values; any head size ``Dv``.
      scale: factor on ``<query, key>``; None is ``D ** -0.5``.
      key_mask: False hides a key, as in `natjax.na2d`.
      sinks: a logit for each head that takes part in the softmax without a value.
      logit_soft_cap: a bound ``c`` of the products, as ``c * tanh(x / c)``.
      return_lse: whether to return the log-sum-exp of the logits too.

    Returns:
      The output, and the log-sum-exp (natural, float32 or float64) if asked for.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 14, 14, 2, 32))
    >>> text = jax.random.normal(jax.random.key(1), (2, 1, 77, 2, 32))
    >>> image = natjax.na2d(q, k, v, kernel_size=7, return_lse=True)
    >>> out, lse = natjax.merge_attentions(
    ...     *zip(image, natjax.attention(q, *text, return_lse=True))
    ... )
    >>> out.shape
    (1, 14, 14, 2, 32)
    """
    checks.flat_keys(query, key, value)
    checks.key_mask(key_mask, "key", key)
    checks.sinks(sinks, query)
    attend = functools.partial(
        attend_to_all,
        scale=checks.attention_scale(scale, query.shape[-1]),
        soft_cap=checks.soft_cap(logit_soft_cap),
    )

    def run(query: Array, key: Array, value: Array, key_mask: Any, sinks: Any) -> Any:
        flat = query.reshape(query.shape[0], math.prod(query.shape[1:-2]), *query.shape[-2:])
        arrays = (flat, shown(key, key_mask), shown(value, key_mask), key_mask)
        out, lse = on_device_parts(lambda *xs: attend(*xs[:-1]), arrays, ())
        out = out.reshape(*query.shape[:-1], value.shape[-1])
        lse = lse.reshape(query.shape[:-1])
        return (out, lse) if sinks is None else with_sinks(out, lse, sinks)

    kept = (query.ndim - 1,) * 2
    out, lse = typed_like_first(run, (query, key, value, key_mask, sinks), kept)
    return (out, lse) if return_lse else out
