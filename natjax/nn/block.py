"""The transformer layer that all models stack, and how a stack of them is run.

The residual stream, the norms and the factors of LayerScale are in float32 (float64 in float64
models), the matrix products and the attention in ``dtype``. bfloat16 has 8 bits of mantissa, and
would round away what a branch adds that is 500 times smaller than the stream, which is nearly
everything under LayerScale's initial 1e-5. PyTorch's autocast, under which the published models
were trained, keeps the stream in float32 as well.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from natjax.kernels.api import Implementation
from natjax.kernels.checks import accumulation_dtype
from natjax.kernels.device import computed_once
from natjax.nn.attention import NeighborhoodAttention2D
from natjax.nn.layers import LayerNorm, Mlp, drop_path
from natjax.nn.mode import Module


class Block(Module):
    """Pre-norm transformer layer with neighborhood attention.

    ``x += gamma1 * attention(norm1(x))``, then ``x += gamma2 * mlp(norm2(x))``, each branch under
    stochastic depth; the gammas only with ``layer_scale``.

    Args:
      channels: channels of the map.
      num_heads: attention heads.
      kernel_size: attention window.
      dilation: attention dilation.
      mlp_ratio: hidden size of the MLP in units of ``channels``, rounded down.
      drop_path_rate: stochastic depth rate.
      dropout: dropout rate after the projection and in the MLP.
      attn_dropout: dropout rate of the attention weights.
      layer_scale: initial value of the gammas; None for no gammas.
      implementation: of the attention op.
      dtype: dtype of matrix products and attention.
      param_dtype: dtype of the parameters.
      rngs: draws the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        kernel_size: int,
        dilation: int,
        *,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        layer_scale: float | None = None,
        implementation: Implementation | None = None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = LayerNorm(channels, **options)
        self.attn = NeighborhoodAttention2D(
            channels,
            num_heads,
            kernel_size,
            dilation=dilation,
            rel_pos_bias=True,
            attn_drop=attn_dropout,
            proj_drop=dropout,
            implementation=implementation,
            **options,
        )
        self.norm2 = LayerNorm(channels, **options)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), drop=dropout, **options)
        self.gamma1, self.gamma2 = (
            None
            if layer_scale is None
            else nnx.Param(jnp.full((channels,), layer_scale, param_dtype))
            for _ in range(2)
        )
        self.drop_path_rate = drop_path_rate
        self.dropout_rate = max(dropout, attn_dropout)

    def __call__(
        self, x: Float[Array, "B H W C"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B H W C"]:
        """Run the layer; ``rngs`` serves the dropouts, None means evaluation.

        ``x`` may have any floating dtype; the result is float32 (float64 in float64 models).

        Raises:
          ValueError: no ``rngs`` after ``train()``.
        """
        rngs = self._rngs_in_use(rngs, drop_path=self.drop_path_rate, dropout=self.dropout_rate)
        x = self._add(x, self.gamma1, self.attn(self.norm1(x), rngs), rngs)
        return self._add(x, self.gamma2, self.mlp(self.norm2(x), rngs), rngs)

    def _add(
        self, x: Array, gamma: nnx.Param | None, branch: Array, rngs: nnx.Rngs | None
    ) -> Array:
        exact = accumulation_dtype(branch.dtype)
        branch = branch.astype(exact)
        if gamma is not None:
            branch = gamma[...].astype(exact)[None, None, None, :] * branch
        # So is the stream's cotangent in the backward pass. Otherwise that of each weight would be
        # made of the sum over all layers after it.
        return computed_once(x.astype(exact) + drop_path(branch, self.drop_path_rate, rngs))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of all blocks: a linear ramp from 0 to ``last`` (exactly 0 for a single block).

    >>> drop_path_rates(0.2, 5)
    [0.0, 0.05, 0.1, 0.15000000000000002, 0.2]
    """
    return [last * i / max(1, depth - 1) for i in range(depth)]


def run_block(block: Block, x: Array, rngs: nnx.Rngs | None, *, remat: bool) -> Array:
    """Run a block on keys drawn for it alone, so that recomputing it draws the same.

    The block gets one key of each stream that it uses, with and without ``remat``, which therefore
    give equal results.
    """
    streams = {"droppath": block.drop_path_rate, "dropout": block.dropout_rate}
    used = () if rngs is None else (name for name, rate in streams.items() if rate > 0)
    keys = {name: getattr(rngs, name)() for name in used}
    run = nnx.remat(_run_with_keys) if remat else _run_with_keys
    return run(block, x, keys)


def _run_with_keys(block: Block, x: Array, keys: dict[str, Array]) -> Array:
    return block(x, nnx.Rngs(**keys) if keys else None)
