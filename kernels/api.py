"""The public ops: check the arguments once, then hand over to an implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from natjax.kernels import checks, registry
from natjax.kernels.merge import merge_attentions as merge_attentions
from natjax.kernels.sharding.explicit import typed_like_first

# A name, or an alias, of `natjax.kernels.registry.IMPLEMENTATIONS`.
type Implementation = str


def na2d(
    query: Float[Array, "B H W N D"],
    key: Float[Array, "B H W M D"],
    value: Float[Array, "B H W M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0 R1"] | None = None,
    scale: float | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B H W N Dv"] | tuple[Float[Array, "B H W N Dv"], Float[Array, "B H W N"]]:
    """2-D neighborhood attention.

    Query ``i`` attends to its neighborhood ``N(i)``, the window of keys around it::

        logits[i, j] = scale * <query[i], key[j]> + rpb[j - i]      for j in N(i)
        out[i] = sum_j softmax_j(logits[i, :]) * value[j]

    The window is centred on the query and shifted inside at a border, so that every query has
    ``K = kernel_size[0] * kernel_size[1]`` neighbors. Limiting cases: a window as large as the
    layout is plain attention; ``stride == kernel_size`` is blocked attention (Swin's, without
    shift); ``dilation=d`` is attention inside each of the ``d * d`` interleaved sub-grids.

    Logits, softmax and sums are computed in float32 (float64 for float64 inputs), and outputs and
    gradients are returned in the dtype of their input. Supports reverse and forward mode, higher
    derivatives, `jax.vmap`, and sharding over batch and heads.

    Args:
      query: queries.
      key: keys, on the same tokens; ``M`` heads, where ``M`` divides ``N``: query head ``n`` uses
        key head ``n // (N // M)`` (grouped-query attention; ``M = 1`` is multi-query attention).
      value: values, on the same tokens and heads as ``key``; any head size ``Dv``.
      kernel_size: window size, at least 1; an even window reaches one further to the left.
      stride: queries that share one window, from 1 to ``kernel_size``.
      dilation: distance between neighboring keys; ``kernel_size * dilation`` must fit the layout,
        and need not divide it.
      is_causal: per axis, whether keys after the query are hidden.
      rpb: relative position bias, ``R = 2 * kernel_size - 1`` entries an axis, indexed by
        ``key - query + kernel_size - 1`` in units of the dilation; added after scaling.
      scale: factor on ``<query, key>``; None is ``D ** -0.5``.
      additional_keys: ``E`` further keys without a position that every query sees, inside the same
        softmax; given together with ``additional_values``.
      additional_values: their values.
      return_lse: whether to return ``log(sum_j exp(logits[i, j]))`` too. Its gradient is honoured.
      implementation: None picks the best for device, dtype and shape and never fails; a name
        ("jax_triton", "pallas_triton", "xla", "reference") means that one or an error.

    Returns:
      The output, and the log-sum-exp (natural, float32 or float64) if asked for.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.

    References:
      Hassani et al., *Neighborhood Attention Transformer*, 2022, section 3.1, equations 1 to 4;
      Hassani and Shi, *Dilated Neighborhood Attention Transformer*, 2022, section 3.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 14, 14, 2, 32))
    >>> natjax.na2d(q, k, v, kernel_size=7, dilation=2).shape
    (1, 14, 14, 2, 32)
    """
    return _attention(
        2,
        (query, key, value),
        (kernel_size, stride, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        additional=(additional_keys, additional_values),
        return_lse=return_lse,
        implementation=implementation,
    )


def na1d(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B L M D"],
    value: Float[Array, "B L M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0"] | None = None,
    scale: float | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N Dv"] | tuple[Float[Array, "B L N Dv"], Float[Array, "B L N"]]:
    """1-D neighborhood attention (sliding window attention for sequences and audio).

    Arguments, results, errors and limiting cases are those of `na2d`, on one axis:
    ``kernel_size``, ``stride``, ``dilation`` and ``is_causal`` are one value, and ``rpb`` is
    ``[N, 2 * kernel_size - 1]``. With ``is_causal=True`` and ``stride=1`` a query sees itself and
    the ``kernel_size - 1`` tokens before it.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 4, 16))
    >>> out, lse = natjax.na1d(q, k, v, kernel_size=8, is_causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((2, 100, 4, 16), (2, 100, 4))
    """
    return _attention(
        1,
        (query, key, value),
        (kernel_size, stride, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        additional=(additional_keys, additional_values),
        return_lse=return_lse,
        implementation=implementation,
    )


def na3d(
    query: Float[Array, "B T H W N D"],
    key: Float[Array, "B T H W M D"],
    value: Float[Array, "B T H W M Dv"],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0 R1 R2"] | None = None,
    scale: float | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W N Dv"] | tuple[Float[Array, "B T H W N Dv"], Float[Array, "B T H W N"]]:
    """3-D neighborhood attention (video, volumes).

    Arguments, results, errors and limiting cases are those of `na2d`, on three axes; ``rpb`` is
    ``[N, 2 * K0 - 1, 2 * K1 - 1, 2 * K2 - 1]``. ``is_causal=(True, False, False)`` hides later
    frames.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 4, 6, 6, 1, 8))
    >>> natjax.na3d(q, k, v, kernel_size=(2, 3, 3), is_causal=(True, False, False)).shape
    (1, 4, 6, 6, 1, 8)
    """
    return _attention(
        3,
        (query, key, value),
        (kernel_size, stride, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        additional=(additional_keys, additional_values),
        return_lse=return_lse,
        implementation=implementation,
    )


def na2d_qk(
    query: Float[Array, "B H W N D"],
    key: Float[Array, "B H W M D"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0 R1"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B H W N K"]:
    """Logits of 2-D neighborhood attention, for those who need the weights themselves.

    Attention maps, attention dropout, a softmax of one's own: ``na2d`` is `na2d_av` of the softmax
    of these logits over their last axis. Prefer `na2d` otherwise: it never stores the ``K`` logits.

    Beware when porting from NATTEN, whose unfused op does not scale: pass ``scale=1.0`` where the
    query has been scaled already.

    Args:
      query: queries.
      key: keys, on the same tokens; heads as in `na2d`.
      kernel_size: window size, as in `na2d`.
      dilation: as in `na2d`.
      is_causal: as in `na2d`.
      rpb: relative position bias, as in `na2d`.
      scale: factor on ``<query, key>``; None is ``D ** -0.5``, as in `na2d`.
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
    return _qk(
        2,
        (query, key),
        (kernel_size, 1, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na1d_qk(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B L M D"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N K"]:
    """Logits of 1-D neighborhood attention; see `na2d_qk`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return _qk(
        1,
        (query, key),
        (kernel_size, 1, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na3d_qk(
    query: Float[Array, "B T H W N D"],
    key: Float[Array, "B T H W M D"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: Float[Array, "N R0 R1 R2"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W N K"]:
    """Logits of 3-D neighborhood attention; see `na2d_qk`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return _qk(
        3,
        (query, key),
        (kernel_size, 1, dilation, is_causal),
        rpb=rpb,
        scale=scale,
        implementation=implementation,
    )


def na2d_av(
    weights: Float[Array, "B H W N K"],
    value: Float[Array, "B H W M Dv"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B H W N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 2-D.

    Args:
      weights: one weight for each of the ``K`` window slots, in the order of `na2d_qk`; those of
        the empty slots of a causal window are ignored.
      value: values; heads as in `na2d`.
      kernel_size: window size, as in `na2d`.
      dilation: as in `na2d`.
      is_causal: as in `na2d`.
      implementation: as in `na2d`.

    Returns:
      The output, in the dtype of ``weights``; zero weights give zeros.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return _av(
        2, (weights, value), (kernel_size, 1, dilation, is_causal), implementation=implementation
    )


def na1d_av(
    weights: Float[Array, "B L N K"],
    value: Float[Array, "B L M Dv"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 1-D; see `na2d_av`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return _av(
        1, (weights, value), (kernel_size, 1, dilation, is_causal), implementation=implementation
    )


def na3d_av(
    weights: Float[Array, "B T H W N K"],
    value: Float[Array, "B T H W M Dv"],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W N Dv"]:
    """Sum over each query's neighborhood of ``weights * value`` in 3-D; see `na2d_av`.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.
    """
    return _av(
        3, (weights, value), (kernel_size, 1, dilation, is_causal), implementation=implementation
    )


# Arguments of `natjax.kernels.checks.neighborhood` after the tokens, as users wrote them.
type _Window = tuple[Any, Any, Any, Any]


def _attention(
    ndim: int,
    arrays: tuple[Array, Array, Array],
    window: _Window,
    *,
    rpb: Array | None,
    scale: float | None,
    additional: tuple[Array | None, Array | None],
    return_lse: bool,
    implementation: Implementation | None,
) -> Any:
    query, key, value = arrays
    tokens = checks.query_and_key(ndim, query, key)
    checks.tokens("value", value, ndim)
    checks.same_tokens("value", value, "query", query)
    checks.same_size("value", value, "key", key, "heads")
    checks.additional(*additional, key, value)
    neighborhood = checks.neighborhood(tokens, *window)
    checks.bias(rpb, query, neighborhood)
    factor = checks.attention_scale(scale, query.shape[-1])

    def attend(query: Array, key: Array, value: Array, rpb: Any, keys: Any, values: Any) -> Any:
        return registry.call(
            "attention",
            implementation,
            query,
            key,
            value,
            neighborhood,
            rpb=rpb,
            scale=factor,
            additional_keys=keys,
            additional_values=values,
        )

    kept = (query.ndim - 1,) * 2
    out, lse = typed_like_first(attend, (*arrays, rpb, *additional), kept)
    return (out, lse) if return_lse else out


def _qk(
    ndim: int,
    arrays: tuple[Array, Array],
    window: _Window,
    *,
    rpb: Array | None,
    scale: float | None,
    implementation: Implementation | None,
) -> Array:
    query, key = arrays
    tokens = checks.query_and_key(ndim, query, key)
    neighborhood = checks.neighborhood(tokens, *window)
    checks.bias(rpb, query, neighborhood)
    scale = checks.attention_scale(scale, query.shape[-1])

    def logits(query: Array, key: Array, rpb: Any) -> Array:
        return registry.call("qk", implementation, query, key, neighborhood, rpb=rpb, scale=scale)

    return typed_like_first(logits, (*arrays, rpb), kept=(query.ndim - 1,))


def _av(
    ndim: int,
    arrays: tuple[Array, Array],
    window: _Window,
    *,
    implementation: Implementation | None,
) -> Array:
    weights, value = arrays
    tokens = checks.tokens("weights", weights, ndim)
    checks.tokens("value", value, ndim)
    checks.same_tokens("value", value, "weights", weights)
    checks.grouped_heads(value, weights, "value", "weights")
    neighborhood = checks.neighborhood(tokens, *window)
    checks.weights(weights, neighborhood)

    def weighted_sum(weights: Array, value: Array) -> Array:
        return registry.call("av", implementation, weights, value, neighborhood)

    return typed_like_first(weighted_sum, arrays, kept=(weights.ndim - 1,))
