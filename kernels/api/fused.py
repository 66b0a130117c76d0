"""Neighborhood attention over one, two and three token axes."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array, Bool, Float

from natjax.kernels.api.calls import Implementation, Window, attention


def na2d(
    query: Float[Array, "B H W N D"],
    key: Float[Array, "B Hk Wk M D"],
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
    rpb: Float[Array, "N R0 R1"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Hk Wk"] | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    sinks: Float[Array, "N"] | None = None,
    logit_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
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

    Queries and keys are on the same tokens unless ``query_ratio`` or an offset says otherwise.

    Args:
      query: queries.
      key: keys; ``M`` heads, where ``M`` divides ``N``: query head ``n`` uses
        key head ``n // (N // M)`` (grouped-query attention; ``M = 1`` is multi-query attention).
      value: values, of the tokens and heads of ``key``; any head size ``Dv``.
      kernel_size: window size, at least 1; an even window reaches one further to the left.
      stride: queries that share one window, from 1 to ``kernel_size``.
      dilation: distance between neighboring keys; ``kernel_size * dilation`` must fit the layout,
        and need not divide it.
      is_causal: per axis, whether keys after the query are hidden.
      is_periodic: per axis, whether it is a circle, such as longitude: windows go round where they
        would be shifted inside. ``dilation`` must divide such an axis, which cannot be causal.
      query_ratio: queries for each key along each axis, as in an upsampler: query ``i`` has the
        window, and the biases, of key token ``i // query_ratio``.
      query_offset: number of the first query along each axis, where ``query`` has a part of them;
        None where it has all.
      key_offset: token of the first key along each axis, where ``key`` and ``value`` have a part of
        them; None where they have all. They must have every key that a query sees. On a periodic
        axis the part may go round: its offset is then below 0, or it ends past ``length``.
      length: keys of the whole along each axis; None is where the keys at hand end.
      rpb: relative position bias, ``R = 2 * kernel_size - 1`` entries an axis, indexed by
        ``key - query + kernel_size - 1`` in units of the dilation; added after scaling.
      scale: factor on ``<query, key>``; None is ``D ** -0.5``.
      key_mask: False hides a key: it takes no part, whatever it is (nan too), and gets no gradient.
        A query that sees nothing gives 0, with a log-sum-exp of ``-inf``.
      additional_keys: ``E`` further keys without a position that every query sees, inside the same
        softmax; given together with ``additional_values``.
      additional_values: their values.
      sinks: a logit for each head that takes part in the softmax without a value; part of the
        log-sum-exp.
      logit_soft_cap: a bound ``c`` of the products, as ``c * tanh(x / c)``, before the bias.
      dropout_rate: share of the softmax' weights to drop, key by key; the others are made larger by
        ``1 / (1 - dropout_rate)``. The log-sum-exp is that of all.
      dropout_key: of `jax.random`; the same one drops the same weights, in every implementation and
        whatever part of the tokens is at hand.
      return_lse: whether to return ``log(sum_j exp(logits[i, j]))`` too. Its gradient is honoured.
      implementation: None picks the best for device, dtype and shape and never fails; a name
        ("jax_triton", "pallas_triton", "mosaic_gpu", "mosaic_tpu", "xla", "reference") means that
        one or an error.

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

    Longitude is a circle; some observations are missing; queries twice as fine as keys:

    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 16, 2, 32))
    >>> observed = jax.random.bernoulli(jax.random.key(1), 0.9, (1, 8, 16))
    >>> options = {"is_periodic": (False, True), "key_mask": observed}
    >>> natjax.na2d(q, k, v, kernel_size=5, **options).shape
    (1, 8, 16, 2, 32)
    >>> fine = jax.random.normal(jax.random.key(2), (1, 16, 32, 2, 32))
    >>> natjax.na2d(fine, k, v, kernel_size=5, query_ratio=2, **options).shape
    (1, 16, 32, 2, 32)
    """
    return attention(
        2,
        (query, key, value),
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
        rpb=rpb,
        scale=scale,
        key_mask=key_mask,
        additional=(additional_keys, additional_values),
        sinks=sinks,
        soft_cap=logit_soft_cap,
        dropout=(dropout_rate, dropout_key),
        return_lse=return_lse,
        implementation=implementation,
    )


def na1d(
    query: Float[Array, "B L N D"],
    key: Float[Array, "B Lk M D"],
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
    rpb: Float[Array, "N R0"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Lk"] | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    sinks: Float[Array, "N"] | None = None,
    logit_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B L N Dv"] | tuple[Float[Array, "B L N Dv"], Float[Array, "B L N"]]:
    """1-D neighborhood attention (sliding window attention for sequences and audio).

    Arguments, results, errors and limiting cases are those of `na2d`, on one axis:
    what may be one value an axis is one value, and ``rpb`` is ``[N, 2 * kernel_size - 1]``. With
    ``is_causal=True`` and ``stride=1`` a query sees itself and the ``kernel_size - 1`` tokens
    before it.

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.
      NotImplementedError: the named implementation does not support this call.

    >>> import jax, natjax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 4, 16))
    >>> out, lse = natjax.na1d(q, k, v, kernel_size=8, is_causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((2, 100, 4, 16), (2, 100, 4))

    The last token alone, as a decoder adds it, from a cache of the 8 keys that it sees:

    >>> last = natjax.na1d(
    ...     q[:, 99:], k[:, 92:], v[:, 92:], kernel_size=8, is_causal=True, query_offset=99,
    ...     key_offset=92,
    ... )
    >>> float(abs(last - out[:, 99:]).max()) < 1e-5
    True
    """
    return attention(
        1,
        (query, key, value),
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
        rpb=rpb,
        scale=scale,
        key_mask=key_mask,
        additional=(additional_keys, additional_values),
        sinks=sinks,
        soft_cap=logit_soft_cap,
        dropout=(dropout_rate, dropout_key),
        return_lse=return_lse,
        implementation=implementation,
    )


def na3d(
    query: Float[Array, "B T H W N D"],
    key: Float[Array, "B Tk Hk Wk M D"],
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
    rpb: Float[Array, "N R0 R1 R2"] | None = None,
    scale: float | None = None,
    key_mask: Bool[Array, "B Tk Hk Wk"] | None = None,
    additional_keys: Float[Array, "B E M D"] | None = None,
    additional_values: Float[Array, "B E M Dv"] | None = None,
    sinks: Float[Array, "N"] | None = None,
    logit_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
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
    return attention(
        3,
        (query, key, value),
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
        rpb=rpb,
        scale=scale,
        key_mask=key_mask,
        additional=(additional_keys, additional_values),
        sinks=sinks,
        soft_cap=logit_soft_cap,
        dropout=(dropout_rate, dropout_key),
        return_lse=return_lse,
        implementation=implementation,
    )
