"""Neighborhood attention as Flax NNX modules, for models of one's own.

The constructor arguments are those of NATTEN's modules of the same names, followed by ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from natjax.kernels import api, checks
from natjax.nn.arguments import check_implementation, check_rate
from natjax.nn.initial import normal_init
from natjax.nn.layers import dropout, linear, pad_to
from natjax.nn.mode import Module
from natjax.nn.position_bias import resize_rpb


def _fixed(name: str, doc: str) -> property:
    """An attribute that only the constructor sets: what is around the module depends on it."""

    def read(self: NeighborhoodAttention) -> tuple[int, ...]:
        return getattr(self, f"_{name}")

    def refuse(self: NeighborhoodAttention, value: object) -> None:
        raise AttributeError(
            f"{name} is fixed at {read(self)}, as the model's config, its saved weights and rpb go "
            f"by it; got {value!r}; model.with_{name}{'s' if name == 'dilation' else ''}(...) "
            "returns a model with another one, and a module of its own is made anew"
        )

    return property(read, refuse, doc=doc)


class NeighborhoodAttention(Module):
    """What the modules share; a subclass says how many token axes there are."""

    ndim: ClassVar[int]
    kernel_size = _fixed("kernel_size", "Window size along each axis.")
    dilation = _fixed("dilation", "Distance between neighboring keys along each axis.")
    _ops: ClassVar[tuple[Any, Any]]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        is_periodic: bool | Sequence[bool] = False,
        rel_pos_bias: bool = False,
        attn_drop: float = 0.0,
        num_kv_heads: int | None = None,
        implementation: api.Implementation | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_heads(embed_dim, num_heads, self.num_kv_heads)
        self.embed_dim = embed_dim
        self._kernel_size = checks.axis_ints("kernel_size", kernel_size, self.ndim)
        self.stride = checks.axis_ints("stride", stride, self.ndim)
        self._dilation = checks.axis_ints("dilation", dilation, self.ndim)
        self.is_causal = checks.axis_bools("is_causal", is_causal, self.ndim)
        self.is_periodic = checks.axis_bools("is_periodic", is_periodic, self.ndim)
        _check_stride(self.stride, self.kernel_size)
        self.scale = _check_scale(qk_scale)
        self.attn_drop = check_rate("attn_drop", attn_drop)
        self.proj_drop = check_rate("proj_drop", proj_drop)
        self.implementation = check_implementation(implementation)

        head_size = embed_dim // num_heads
        options = {"dtype": dtype or param_dtype, "param_dtype": param_dtype, "rngs": rngs}
        outputs = (num_heads + 2 * self.num_kv_heads) * head_size
        self.qkv = linear(embed_dim, outputs, use_bias=qkv_bias, **options)
        self.proj = linear(embed_dim, embed_dim, **options)
        # One assignment: NNX takes an attribute that starts as None for a constant.
        bias_shape = (num_heads, *(2 * k - 1 for k in self.kernel_size))
        self.rpb = (
            nnx.Param(normal_init(rngs.params(), bias_shape, param_dtype)) if rel_pos_bias else None
        )

    def __call__(
        self,
        x: Float[Array, "B *X C"],
        rngs: nnx.Rngs | None = None,
        *,
        key_mask: Bool[Array, "B *X"] | None = None,
    ) -> Float[Array, "B *X C"]:
        """Attend; ``rngs`` serves the dropouts, None means evaluation.

        Args:
          x: the input.
          rngs: stream ``dropout``.
          key_mask: False hides a token from all queries (`natjax.na2d`); `natjax.mask_of_sizes`
            makes one for images of several sizes in a batch.

        Raises:
          ValueError: an input of another rank or number of channels, or smaller than the window
            along a periodic axis; a mask of another shape; no ``rngs`` after ``train()``.
        """
        if x.ndim != self.ndim + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have {self.ndim + 2} dimensions, batch, {self.ndim} token axes and "
                f"embed_dim={self.embed_dim} channels; got shape {x.shape}"
            )
        rngs = self._rngs_in_use(rngs, attn_drop=self.attn_drop, proj_drop=self.proj_drop)
        layout = x.shape[1:-1]
        if key_mask is not None and key_mask.shape != x.shape[:-1]:
            raise ValueError(
                f"key_mask must have the batch and tokens of x, {x.shape[:-1]}; got shape "
                f"{key_mask.shape}"
            )
        x = pad_to(x, self._least_layout(layout))
        if key_mask is not None:
            # What is padded is attended to, with a mask and without one.
            padding = ((0, n - m) for n, m in zip(x.shape, key_mask.shape, strict=False))
            key_mask = jnp.pad(key_mask, tuple(padding), constant_values=True)
        out = self._attend(*self._query_key_value(x), key_mask, layout, rngs)
        out = _crop(out, layout)
        out = self.proj(out.reshape(*out.shape[:-2], self.embed_dim))
        return dropout(out, self.proj_drop, rngs)

    def _least_layout(self, layout: tuple[int, ...]) -> tuple[int, ...]:
        least = tuple(k * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        axes = zip(layout, least, self.is_periodic, strict=True)
        if any(is_periodic and n < size for n, size, is_periodic in axes):
            raise ValueError(
                f"x must have at least kernel_size * dilation = {least} tokens along a periodic "
                f"axis, which cannot be padded; got tokens {layout}"
            )
        return least

    def _query_key_value(self, x: Array) -> list[Array]:
        # Channels are split before they become heads: less data is moved than in the other order
        # (docs/design.md, Models).
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        head_size = self.embed_dim // self.num_heads
        ends = np.cumsum(heads[:-1]) * head_size
        parts = jnp.split(self.qkv(x), ends, axis=-1)
        return [
            part.reshape(*x.shape[:-1], n, head_size) for part, n in zip(parts, heads, strict=True)
        ]

    def _attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        key_mask: Array | None,
        layout: tuple[int, ...],
        rngs: nnx.Rngs | None,
    ) -> Array:
        options = {
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
            "is_periodic": self.is_periodic,
            "scale": self.scale,
            "rpb": None if self.rpb is None else self.rpb[...],
            "key_mask": key_mask,
            "implementation": self.implementation,
        }
        attention, logits = self._ops
        if self._is_captured():
            weights = _weights(logits(query, key, self.kernel_size, **options))
            self.sow(nnx.Intermediate, "attention_weights", _crop(weights, layout))
        if rngs is not None and self.attn_drop > 0:
            options |= {"dropout_rate": self.attn_drop, "dropout_key": rngs.dropout()}
        return attention(query, key, value, self.kernel_size, **options)

    def _is_captured(self) -> bool:
        """Whether `flax.nnx.capture` collects intermediate values of this call.

        Asked for, since only the unfused op has the weights, which take time and memory.
        """
        captures = getattr(self, "__captures__", ())
        return any(type(variable) is nnx.Intermediate for variable in captures)


class NeighborhoodAttention1D(NeighborhoodAttention):
    """Neighborhood attention over ``[B, L, C]``; arguments as in `NeighborhoodAttention2D`.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> attention = natjax.NeighborhoodAttention1D(32, 4, 9, is_causal=True, rngs=nnx.Rngs(0))
    >>> attention(jnp.ones((2, 50, 32))).shape
    (2, 50, 32)
    """

    ndim = 1
    _ops = (api.na1d, api.na1d_qk)


class NeighborhoodAttention2D(NeighborhoodAttention):
    """Neighborhood attention over ``[B, H, W, C]``, with its projections.

    ``proj(attention(q, k, v))``, where ``q, k, v`` are one linear layer of the input and attention
    is `natjax.na2d`. Layouts smaller than ``kernel_size * dilation`` along an axis are accepted:
    the *input* is zero padded right and bottom to that size, so padded tokens have the bias of
    ``qkv`` as key and value and are attended to, and the output is cropped before ``proj``. That is
    what NATTEN 0.14 and 0.15 do, which the published models were trained with. (Along a causal
    axis no query sees the padding.)

    Parameters: ``qkv.kernel`` ``[C, 3C]`` (q, k, v; each head by head) and ``qkv.bias``;
    ``proj.kernel`` ``[C, C]`` and ``proj.bias``; with ``rel_pos_bias`` also ``rpb``
    ``[N, 2 * K0 - 1, 2 * K1 - 1]``.

    Args:
      embed_dim: channels ``C`` of input and output, a multiple of ``num_heads``.
      num_heads: heads ``N``.
      kernel_size: window size, an int or one per axis.
      stride: queries that share a window, an int or one per axis.
      dilation: distance between neighboring keys, an int or one per axis.
      is_causal: whether keys after the query are hidden, a bool or one per axis.
      qkv_bias: whether ``qkv`` has a bias.
      qk_scale: factor on ``<query, key>``; None is ``(C / N) ** -0.5``.
      proj_drop: dropout rate after ``proj``.
      is_periodic: whether an axis is a circle, a bool or one per axis; such an axis is not padded.
      rel_pos_bias: whether to learn a relative position bias.
      attn_drop: dropout rate of the attention weights.
      num_kv_heads: heads of key and value, a divisor of ``num_heads`` (grouped-query attention);
        None is ``num_heads``.
      implementation: of the ops, as in `natjax.na2d`.
      dtype: dtype of the computation; None is ``param_dtype``.
      param_dtype: dtype of the parameters.
      rngs: stream ``params`` (or the default one) draws the initial parameters.

    A call takes the input ``[B, H, W, C]`` and optionally ``rngs``, whose stream ``dropout`` serves
    ``attn_drop`` and ``proj_drop``; without it nothing is dropped. ``key_mask`` ``[B, H, W]`` hides
    tokens. It returns ``[B, H, W, C]``.
    ``train()`` and ``eval()`` fix whether anything may be dropped (`natjax.nn.mode.Module`).

    Within `flax.nnx.capture` of ``nnx.Intermediate`` a call also leaves its weights, before
    dropout, ``[B, H, W, N, K0 * K1]``, as ``attention_weights`` (`natjax.attention_weights`).

    Raises:
      ValueError: an argument breaks its rule; the message has name, rule and value.

    References:
      Hassani et al., *Neighborhood Attention Transformer*, CVPR 2023, section 3.1.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> attention = natjax.NeighborhoodAttention2D(32, 4, kernel_size=5, rngs=nnx.Rngs(0))
    >>> attention(jnp.ones((1, 12, 3, 32))).shape
    (1, 12, 3, 32)
    """

    ndim = 2
    _ops = (api.na2d, api.na2d_qk)

    def set_window(self, kernel_size: int, dilation: int) -> None:
        """Change the window, and resize the position bias to it.

        For models, which keep a config; `natjax.NAT.with_dilations` and ``with_kernel_size``.

        Args:
          kernel_size: side of the window.
          dilation: distance between neighboring keys.
        """
        self._kernel_size = checks.axis_ints("kernel_size", kernel_size, self.ndim)
        self._dilation = checks.axis_ints("dilation", dilation, self.ndim)
        sizes = tuple(2 * k - 1 for k in self.kernel_size)
        if self.rpb is not None and self.rpb.shape[1:] != sizes:
            self.rpb = nnx.Param(jnp.asarray(resize_rpb(np.asarray(self.rpb[...]), sizes)))


class NeighborhoodAttention3D(NeighborhoodAttention):
    """Neighborhood attention over ``[B, T, H, W, C]``; arguments as in `NeighborhoodAttention2D`.

    >>> import jax.numpy as jnp, natjax
    >>> from flax import nnx
    >>> attention = natjax.NeighborhoodAttention3D(16, 2, (2, 3, 3), rngs=nnx.Rngs(0))
    >>> attention(jnp.ones((1, 4, 6, 6, 16))).shape
    (1, 4, 6, 6, 16)
    """

    ndim = 3
    _ops = (api.na3d, api.na3d_qk)


def _check_heads(embed_dim: int, num_heads: int, num_kv_heads: int) -> None:
    checks.axis_ints("num_heads", num_heads, 1)
    checks.axis_ints("num_kv_heads", num_kv_heads, 1)
    if embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads; got embed_dim={embed_dim} and "
            f"num_heads={num_heads}"
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_kv_heads must divide num_heads; got num_kv_heads={num_kv_heads} and "
            f"num_heads={num_heads}"
        )


def _check_stride(stride: tuple[int, ...], kernel_size: tuple[int, ...]) -> None:
    if any(s > k for s, k in zip(stride, kernel_size, strict=True)):
        raise ValueError(
            f"stride must not exceed kernel_size along any axis; got stride={stride} and "
            f"kernel_size={kernel_size}"
        )


def _weights(logits: Float[Array, "B *X N K"]) -> Float[Array, "B *X N K"]:
    """Softmax over the window; zeros where it has nothing that can be seen."""
    logits = logits.astype(checks.accumulation_dtype(logits.dtype))
    return jnp.where(jnp.isneginf(logits), 0.0, jax.nn.softmax(logits))


def _crop(x: Float[Array, "B *X N D"], layout: tuple[int, ...]) -> Float[Array, "B *Y N D"]:
    """Without the tokens that were padded."""
    return x[:, *(slice(n) for n in layout)]


def _check_scale(qk_scale: float | None) -> float | None:
    if qk_scale is not None and (not math.isfinite(qk_scale) or qk_scale == 0):
        raise ValueError(
            f"qk_scale must be None (head size ** -0.5) or a finite non-zero number; got "
            f"{qk_scale!r}"
        )
    return qk_scale
