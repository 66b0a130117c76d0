"""Named problems: the attention layers of the published models at 224 x 224.

``natjax tune`` measures these, and problems of one's own; benchmarks and tests run them too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from natjax.kernels import api, checks
from natjax.kernels.neighborhood import Neighborhood


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One call of a neighborhood attention op.

    Attributes:
      name: how tests and benchmarks call it.
      shape: tokens along each axis.
      kernel_size: window size along each axis.
      stride: queries that share a window; 1, or one value an axis.
      dilation: distance between neighboring keys; 1, or one value an axis.
      is_causal: whether later keys are hidden; False, or one value an axis.
      batch: batch size.
      heads: query heads.
      kv_heads: key/value heads; 0 is as many as query heads.
      head_dim: size of queries and keys.
      value_dim: size of values; 0 is as queries.
      extra: additional keys and values.
      rpb: whether there is a relative position bias.
    """

    name: str
    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    dilation: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False
    batch: int = 1
    heads: int = 1
    kv_heads: int = 0
    head_dim: int = 8
    value_dim: int = 0
    extra: int = 0
    rpb: bool = True

    @property
    def ndim(self) -> int:
        """Token axes."""
        return len(self.shape)

    @property
    def op(self) -> Callable[..., Any]:
        """`na1d`, `na2d` or `na3d`, without any arguments."""
        return getattr(api, f"na{self.ndim}d")

    @property
    def neighborhood(self) -> Neighborhood:
        """The neighborhood, checked."""
        return checks.neighborhood(
            self.shape, self.kernel_size, self.stride, self.dilation, self.is_causal
        )

    @property
    def arguments(self) -> dict[str, object]:
        """Keyword arguments of the op other than arrays."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "dilation": self.dilation,
            "is_causal": self.is_causal,
        }

    def structs(self, dtype: jax.typing.DTypeLike = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the array arguments, by name."""
        kv_heads, value_dim = self.kv_heads or self.heads, self.value_dim or self.head_dim
        shapes = {
            "query": (self.batch, *self.shape, self.heads, self.head_dim),
            "key": (self.batch, *self.shape, kv_heads, self.head_dim),
            "value": (self.batch, *self.shape, kv_heads, value_dim),
        }
        if self.rpb:
            shapes["rpb"] = (self.heads, *self.neighborhood.bias_shape)
        if self.extra:
            shapes["additional_keys"] = (self.batch, self.extra, kv_heads, self.head_dim)
            shapes["additional_values"] = (self.batch, self.extra, kv_heads, value_dim)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}

    def arrays(self, seed: int = 0, dtype: jax.typing.DTypeLike = jnp.float32) -> dict[str, Array]:
        """Standard normal arguments, by name, the same in every dtype but for rounding."""
        rng = np.random.default_rng(seed)
        return {
            name: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
            for name, x in self.structs(dtype).items()
        }


def _stages(
    name: str, dim: int, dilations: tuple[int, ...], kernel_size: int = 7, batch: int = 8
) -> tuple[Problem, ...]:
    """The four stages of a NAT with ``dim`` channels in the first and heads of 32."""
    return tuple(
        Problem(
            name=f"{name}-stage{i + 1}-d{dilation}",
            shape=(56 >> i,) * 2,
            kernel_size=(kernel_size,) * 2,
            dilation=dilation,
            batch=batch,
            heads=(dim << i) // 32,
            head_dim=32,
        )
        for i, dilation in enumerate(dilations)
    )


NAT_TINY = _stages("nat_tiny", 64, (1, 1, 1, 1))
NAT_BASE = _stages("nat_base", 128, (1, 1, 1, 1))
DINAT_TINY = _stages("dinat_tiny", 64, (8, 4, 2, 1))
