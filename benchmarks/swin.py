"""Swin-Tiny out of natjax's own layers: what NAT is measured against.

Attention within disjoint windows, which every second block shifts by half a window around the
borders (Liu et al., *Swin Transformer*, ICCV 2021, section 3). Everything else (tokenizer, MLP,
norms, merging of patches, stochastic depth) is the code that natjax's models use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import natjax
from natjax.kernels.device import computed_once
from natjax.nn.block import drop_path_rates
from natjax.nn.layers import (
    LayerNorm,
    Mlp,
    PatchMerging,
    PatchTokenizer,
    drop_path,
    linear,
    normal_init,
)

# (query, key, value, bias, window, shift) -> out, on [B, H, W, N, D].
type Attend = Callable[..., Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Shape of the model; the defaults are Swin-Tiny's.

    Attributes:
      dim: channels of the first level; each further level has twice as many.
      depths: blocks in each level.
      num_heads: heads in each level.
      window: side of the windows.
      drop_path: stochastic depth rate of the last block.
      num_classes: outputs.
    """

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.2
    num_classes: int = 1000


def attend_in_windows(
    query: Float[Array, "B H W N D"],
    key: Float[Array, "B H W N D"],
    value: Float[Array, "B H W N D"],
    bias: Float[Array, "N R R"],
    window: int,
    shift: int,
) -> Float[Array, "B H W N D"]:
    """Attention as Swin's own code has it: windows as a batch, two matrix products, one mask.

    Tokens that the shift has brought together from opposite borders do not see each other.
    """
    sides = query.shape[1:3]
    query, key, value = (_partition(_roll(x, -shift), window) for x in (query, key, value))
    logits = jnp.einsum("bwqnd,bwknd->bwnqk", query, key).astype(jnp.float32)
    added = _bias_of_pairs(bias.astype(jnp.float32), window)[None, None]
    logits = logits * query.shape[-1] ** -0.5 + added
    if shift:
        hidden = jnp.asarray(_hidden(sides, window, shift))[None, :, None]
        logits = jnp.where(hidden, -jnp.inf, logits)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    out = jnp.einsum("bwnqk,bwknd->bwqnd", weights, value)
    return _roll(_join(out, sides, window), shift)


def attend_in_blocks(
    query: Array, key: Array, value: Array, bias: Array, window: int, shift: int
) -> Array:
    """The same by `natjax.na2d`, whose windows are disjoint where the stride is their size.

    There is no mask: the outermost windows of shifted blocks see both borders. So this is not
    Swin's result; it bounds what Swin could gain from our kernels.
    """
    query, key, value = (_roll(x, -shift) for x in (query, key, value))
    out = natjax.na2d(query, key, value, window, stride=window, rpb=bias)
    return _roll(out, shift)


def pass_values(query: Array, key: Array, value: Array, *_: Any, **__: Any) -> Array:
    """No attention: the values."""
    del query, key
    return value


def _roll(x: Array, shift: int) -> Array:
    return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


def _partition(x: Float[Array, "B H W N D"], window: int) -> Float[Array, "B M T N D"]:
    batch, height, width, *rest = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, *rest)
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, *rest)


def _join(
    x: Float[Array, "B M T N D"], sides: tuple[int, int], window: int
) -> Float[Array, "B H W N D"]:
    batch, _, _, *rest = x.shape
    x = x.reshape(batch, sides[0] // window, sides[1] // window, window, window, *rest)
    return x.swapaxes(2, 3).reshape(batch, *sides, *rest)


def _bias_of_pairs(bias: Float[Array, "N R R"], window: int) -> Float[Array, "N T T"]:
    rows, columns = np.divmod(np.arange(window * window), window)
    index = (x[None, :] - x[:, None] + window - 1 for x in (rows, columns))
    return bias[:, *index]


def _hidden(sides: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Pairs of a window that the shift has brought together, bool[windows, queries, keys]."""
    rows, columns = (np.arange(n) >= n - shift for n in sides)
    region = 2 * rows[:, None] + columns[None, :]
    region = region.reshape(sides[0] // window, window, sides[1] // window, window)
    region = region.swapaxes(1, 2).reshape(-1, window * window)
    return region[:, :, None] != region[:, None, :]


class _Block(nnx.Module):
    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        shift: int,
        rate: float,
        attend: Attend,
        **options: Any,
    ):
        self.norm1 = LayerNorm(channels, **options)
        self.qkv = linear(channels, 3 * channels, **options)
        span = 2 * window - 1
        table = normal_init(options["rngs"].params(), (heads, span, span), options["param_dtype"])
        self.rpb = nnx.Param(table)
        self.proj = linear(channels, channels, **options)
        self.norm2 = LayerNorm(channels, **options)
        self.mlp = Mlp(channels, 4 * channels, **options)
        self.heads, self.window, self.shift, self.rate = heads, window, shift, rate
        self.attend = attend

    def __call__(self, x: Float[Array, "B H W C"], rngs: nnx.Rngs | None) -> Array:
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:3], 3, self.heads, -1)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        # A window that covers the map is not shifted.
        shift = self.shift if min(x.shape[1:3]) > self.window else 0
        out = self.attend(query, key, value, self.rpb[...], self.window, shift)
        # Stored as natjax's own block does, for a fair comparison.
        x = computed_once(x + drop_path(self.proj(out.reshape(x.shape)), self.rate, rngs))
        return computed_once(x + drop_path(self.mlp(self.norm2(x)), self.rate, rngs))


class Swin(nnx.Module):
    """A Swin Transformer; maps must be multiples of the window at every level.

    Args:
      config: the shape of the model.
      attend: how tokens attend.
      dtype: dtype of the computation; parameters are float32.
      rngs: draws the initial parameters.
    """

    def __init__(self, config: SwinConfig, *, attend: Attend, dtype: Any, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": rngs}
        self.dtype = jnp.dtype(dtype)
        self.patch_embed = PatchTokenizer(3, config.dim, 4, **options)
        rates = iter(drop_path_rates(config.drop_path, sum(config.depths)))
        layers = []
        for level, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            channels = config.dim * 2**level
            if level:
                layers.append(PatchMerging(channels // 2, **options))
            layers += [
                _Block(
                    channels,
                    heads,
                    config.window,
                    (block % 2) * (config.window // 2),
                    next(rates),
                    attend,
                    **options,
                )
                for block in range(depth)
            ]
        self.layers = nnx.List(layers)
        last = config.dim * 2 ** (len(config.depths) - 1)
        self.norm = LayerNorm(last, **options)
        self.head = linear(last, config.num_classes, **options | {"dtype": jnp.float32})

    def __call__(self, images: Float[Array, "B H W I"], rngs: nnx.Rngs | None = None) -> Array:
        """Logits of normalised images."""
        x = self.patch_embed(images.astype(self.dtype))
        for layer in self.layers:
            x = layer(x, rngs) if isinstance(layer, _Block) else layer(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2), dtype=jnp.float32))
