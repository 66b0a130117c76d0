"""Attention over a union of key sets, from the attention over each."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from natjax.kernels.checks import accumulation_dtype


def merge_attentions(
    outputs: Sequence[Float[Array, "*X N Dv"]], lses: Sequence[Float[Array, "*X N"]]
) -> tuple[Float[Array, "*X N Dv"], Float[Array, "*X N"]]:
    """Attention over the union of disjoint key sets, from the attention over each.

    ``lse = logsumexp_m(lse_m)`` and ``out = sum_m exp(lse_m - lse) * out_m``, accumulated in
    float32 (float64 for float64 inputs) and differentiable in every argument. A part with
    ``lse = -inf`` (no keys) does not count; where all are empty the output is 0 and the lse
    ``-inf``.

    Args:
      outputs: partial outputs, at least one, of one shape and dtype.
      lses: their log-sum-exps, as returned by ``return_lse=True``.

    Returns:
      The merged output, in the dtype of the partial ones, and the merged log-sum-exp.

    Raises:
      ValueError: no parts, not as many lses as outputs, or shapes or dtypes that do not fit.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 1, 4))
    >>> parts = [natjax.na1d(q, k, v, size, return_lse=True) for size in (3, 5)]
    >>> out, lse = natjax.merge_attentions(*zip(*parts))
    >>> out.shape, lse.shape
    ((1, 8, 1, 4), (1, 8, 1))
    """
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"outputs and lses must hold the same number (>= 1) of arrays; got {len(outputs)} and "
            f"{len(lses)}"
        )
    first = outputs[0]
    for out, lse in zip(outputs, lses, strict=True):
        if out.shape != first.shape or lse.shape != first.shape[:-1] or out.dtype != first.dtype:
            raise ValueError(
                "outputs must share shape and dtype, and lses have that shape without the last "
                f"axis; got {[(o.shape, o.dtype.name) for o in outputs]} and "
                f"{[x.shape for x in lses]}"
            )
    dtype = accumulation_dtype(first.dtype)
    parts = jnp.stack([lse.astype(dtype) for lse in lses])
    # Where every part is empty, -inf - -inf would be nan, and so would gradients.
    are_empty = jnp.isneginf(parts).all(axis=0)
    shift = jax.nn.logsumexp(jnp.where(are_empty[None], 0.0, parts), axis=0)
    shares = jnp.exp(parts - shift[None])[..., None]
    merged = jnp.where(are_empty, -jnp.inf, shift)
    total = jnp.sum(shares * jnp.stack([out.astype(dtype) for out in outputs]), axis=0)
    return total.astype(first.dtype), merged
