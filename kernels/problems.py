"""Named problems: what tests, benchmarks and tuning run.

`EDGES` aims at what breaks: windows as large as the layout, sizes that no tile divides, ragged
dilation groups, odd head sizes. `NAT_TINY` and its kin are the attention layers of the published
models at 224 x 224, `LARGE` those of images and videos at full size.
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
from natjax.kernels.window import Neighborhood


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

# Windows so large that unfused weights would not fit in memory: for fused kernels only.
LARGE = (
    Problem(
        name="image-256", shape=(256, 256), kernel_size=(80, 80), heads=8, head_dim=128, rpb=False
    ),
    Problem(
        name="video-30x48x80",
        shape=(30, 48, 80),
        kernel_size=(18, 24, 24),
        heads=8,
        head_dim=128,
        rpb=False,
    ),
)

EDGES = (
    Problem(name="1d", shape=(17,), kernel_size=(5,), batch=2, heads=2),
    Problem(name="1d-window-1", shape=(9,), kernel_size=(1,)),
    Problem(name="1d-one-token", shape=(1,), kernel_size=(1,), head_dim=4),
    Problem(name="1d-window-is-input", shape=(12,), kernel_size=(12,), heads=3),
    Problem(name="1d-even", shape=(29,), kernel_size=(6,), head_dim=24),
    Problem(name="1d-long", shape=(203,), kernel_size=(9,), heads=2),
    Problem(name="1d-causal", shape=(37,), kernel_size=(8,), is_causal=True, heads=2),
    Problem(name="1d-causal-full", shape=(10,), kernel_size=(10,), is_causal=True),
    Problem(name="1d-ragged-dilation", shape=(23,), kernel_size=(3,), dilation=5),
    Problem(name="1d-stride-ragged", shape=(41,), kernel_size=(7,), stride=4),
    Problem(name="1d-blocked", shape=(40,), kernel_size=(8,), stride=8),
    Problem(
        name="1d-causal-stride-dilation",
        shape=(43,),
        kernel_size=(5,),
        stride=3,
        dilation=3,
        is_causal=True,
    ),
    Problem(name="2d-prime", shape=(19, 23), kernel_size=(7, 7), heads=2, head_dim=32),
    Problem(
        name="2d-window-times-dilation-is-input", shape=(15, 21), kernel_size=(5, 7), dilation=3
    ),
    Problem(name="2d-window-is-input", shape=(7, 6), kernel_size=(7, 6), batch=2),
    Problem(name="2d-window-1-along-an-axis", shape=(9, 20), kernel_size=(1, 5)),
    Problem(name="2d-even-odd", shape=(13, 18), kernel_size=(4, 7), head_dim=80),
    Problem(name="2d-mixed-dilation", shape=(17, 26), kernel_size=(3, 5), dilation=(4, 3), heads=2),
    Problem(name="2d-stride", shape=(21, 18), kernel_size=(7, 6), stride=(3, 6)),
    Problem(name="2d-causal-rows", shape=(11, 14), kernel_size=(4, 5), is_causal=(True, False)),
    Problem(
        name="2d-everything",
        shape=(19, 22),
        kernel_size=(4, 3),
        stride=(2, 3),
        dilation=(3, 2),
        is_causal=(False, True),
        batch=2,
        heads=4,
        kv_heads=2,
        value_dim=12,
        extra=3,
    ),
    Problem(name="2d-mqa", shape=(10, 12), kernel_size=(3, 5), heads=4, kv_heads=1, value_dim=24),
    Problem(name="2d-no-bias", shape=(16, 16), kernel_size=(7, 7), rpb=False, extra=5),
    Problem(name="3d", shape=(4, 7, 9), kernel_size=(3, 3, 5), heads=2),
    Problem(
        name="3d-everything",
        shape=(5, 9, 8),
        kernel_size=(3, 4, 2),
        stride=(2, 1, 2),
        dilation=(1, 2, 3),
        is_causal=(True, False, False),
        heads=2,
        kv_heads=1,
        value_dim=4,
        extra=2,
    ),
)
