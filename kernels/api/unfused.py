"""The halves of neighborhood attention, for those who need the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Bool, Float

from natjax.kernels.api.calls import Implementation, Window, av, qk


def na2d_qk(
    query: Float[Array, "B H W N D"],
    key: Float[Array, "B Hk Wk M D"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    rpb: Float[Array, "N R0 R1"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Hk Wk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B H W N K"]:
    """Logits of 2-D neighborhood attention, for those who need the weights themselves.

    Attention maps, attention dropout, a softmax of one's own: ``na2d`` is `na2d_av` of the softmax
    of these logits over their last axis. Prefer `na2d` otherwise: it never stores the ``K`` logits.

    Where ``key_mask`` hides all keys of a query, all its logits are ``-inf`` and `jax.nn.softmax`
    gives nan: put ``jnp.where(jnp.isneginf(logits), 0, weights)`` in between.

    Beware when porting from NATTEN, whose unfused op does not scale: pass ``scale=1.0`` where the
    query has been scaled already.

    Args:
      query: queries.
      key: keys; tokens and heads as in `na2d`.
      kernel_size: window size, as in `na2d`.
      stride: as in `na2d`.
      dilation: as in `na2d`.
      is_causal: as in `na2d`.
      is_periodic: as in `na2d`.
      query_ratio: as in `na2d`.
      query_offset: as in `na2d`.
      key_offset: as in `na2d`.
      length: as in `na2d`.
      rpb: relative position bias, as in `na2d`.
      scale: factor on ``<query, key>``; None is ``D ** -0.5``, as in `na2d`.
      key_mask: False hides a key, as in `na2d`: its slots hold ``-inf``.
      implementation: as in `na2d`.

    Returns:
      Logits in the dtype of ``query``; the ``K`` window slots in row-major order. Slots of a
      causal window whose key would be later than the query hold ``-inf`` (and give and take no
      gradient).

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 9, 9, 2, 8))
    >>> weights = jax.nn.softmax(natjax.na2d_qk(q, k, kernel_size=3))
    >>> weights.shape, natjax.na2d_av(weights, v, kernel_size=3).shape
    ((1, 9, 9, 2, 9), (1, 9, 9, 2, 8))
    """
    return qk(
        2,
        (query, key),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na1d_qk(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B Lk M D"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    rpb: Float[Array, "N R0"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Lk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N K"]:
    """Logits of 1-D neighborhood attention; see `na2d_qk`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return qk(
        1,
        (query, key),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na3d_qk(
    query: Float[Array, "B T H W N D"],
    key: Float[Array, "B Tk Hk Wk M D"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    rpb: Float[Array, "N R0 R1 R2"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Tk Hk Wk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W N K"]:
    """Logits of 3-D neighborhood attention; see `na2d_qk`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return qk(
        3,
        (query, key),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na2d_av(
    weights: Float[Array, "B H W N K"],
    value: Float[Array, "B Hk Wk M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    key_mask: Bool[Array, "B Hk Wk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B H W N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 2-D.

    Args:
      weights: one weight for each of the ``K`` window slots, in the order of `na2d_qk`; those of
        the empty slots of a causal window, and of hidden keys, are ignored.
      value: values; tokens and heads as in `na2d`.
      kernel_size: window size, as in `na2d`.
      stride: as in `na2d`.
      dilation: as in `na2d`.
      is_causal: as in `na2d`.
      is_periodic: as in `na2d`.
      query_ratio: as in `na2d`.
      query_offset: as in `na2d`.
      key_offset: as in `na2d`.
      length: as in `na2d`.
      key_mask: False hides a key, as in `na2d`.
      implementation: as in `na2d`.

    Returns:
      The output, in the dtype of ``weights``; zero weights give zeros.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return av(
        2,
        (weights, value),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        implementation=implementation,
    )


def na1d_av(
    weights: Float[Array, "B L N K"],
    value: Float[Array, "B Lk M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    key_mask: Bool[Array, "B Lk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 1-D; see `na2d_av`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return av(
        1,
        (weights, value),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        implementation=implementation,
    )


def na3d_av(
    weights: Float[Array, "B T H W N K"],
    value: Float[Array, "B Tk Hk Wk M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    is_periodic: bool | Sequence[bool] = False,
    query_ratio: int | Sequence[int] = 1,
    query_offset: int | Sequence[int] | None = None,
    key_offset: int | Sequence[int] | None = None,
    length: int | Sequence[int] | None = None,
    key_mask: Bool[Array, "B Tk Hk Wk"] | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 3-D; see `na2d_av`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return av(
        3,
        (weights, value),
        Window(
            kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=is_causal,
            is_periodic=is_periodic,
            query_ratio=query_ratio,
            query_offset=query_offset,
            key_offset=key_offset,
            length=length,
        ),
        key_mask=key_mask,
        implementation=implementation,
    )
