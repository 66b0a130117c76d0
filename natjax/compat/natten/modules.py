"""NATTEN's modules, with the arguments of 0.14 to 0.21, as Flax NNX modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

import natjax
from natjax.nn.attention import NeighborhoodAttention

# Renamed from one version to the next: what 0.14 to 0.19 call it, and what natjax does.
_OLD_NAMES = {"dim": "embed_dim", "bias": "rel_pos_bias"}


class _Arguments(NeighborhoodAttention):
    """Takes NATTEN's arguments, in any of its versions; goes before a module of natjax."""

    def __init__(
        self,
        embed_dim: int | None = None,
        num_heads: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        *,
        rngs: nnx.Rngs,
        use_experimental_ops: bool = False,
        **options: Any,
    ):
        del use_experimental_ops
        given = {"embed_dim": embed_dim, "num_heads": num_heads, "kernel_size": kernel_size}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in options.items():
            new = _OLD_NAMES.get(name, name)
            if new in given:
                raise TypeError(f"{name} and {new} are one argument; got both")
            given[new] = value
        for name in ("embed_dim", "num_heads", "kernel_size"):
            if name not in given:
                raise TypeError(f"{type(self).__name__} needs {name}")
        super().__init__(**given, rngs=rngs)


class NeighborhoodAttention1D(_Arguments, natjax.NeighborhoodAttention1D):
    """NATTEN's module on ``[B, L, C]``.

    Args:
      embed_dim: channels; ``dim`` up to 0.19.
      num_heads: heads.
      kernel_size: window size.
      rngs: stream ``params`` (or the default one) draws the initial parameters.
      use_experimental_ops: does nothing.
      **options: by name, ``stride``, ``dilation``, ``is_causal``, ``qkv_bias``, ``qk_scale``,
        ``attn_drop``, ``proj_drop``; ``rel_pos_bias``, which is ``bias`` in 0.14 and 0.15 (and was
        on there by default: give ``bias=True``).

    Raises:
      TypeError: an argument that is missing or unknown, or given under two names.
      ValueError: as `natjax.NeighborhoodAttention1D`.
    """


class NeighborhoodAttention2D(_Arguments, natjax.NeighborhoodAttention2D):
    """NATTEN's module on ``[B, H, W, C]``; arguments as in `NeighborhoodAttention1D`."""


class NeighborhoodAttention3D(_Arguments, natjax.NeighborhoodAttention3D):
    """NATTEN's module on ``[B, D, H, W, C]``; arguments as in `NeighborhoodAttention1D`."""
