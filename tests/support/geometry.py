"""Calls with everything that a neighborhood can be, and what is common to their tests."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import windows
from hypothesis import strategies as st

import natjax
from natjax.kernels import checks

UNFUSED = ("query", "key", "rpb", "key_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call of the ops.

    Attributes:
      name: of the test.
      keys: keys at hand along each axis.
      window: arguments of the neighborhood.
      queries: queries at hand along each axis; None is as many as keys.
      heads: query heads; two of them share a key head.
      extra: additional keys.
      rpb: whether there is a bias.
      hidden: share of the keys that are hidden; None is no mask.
      sinks: whether there are attention sinks.
      options: other arguments of the fused op.
    """

    name: str
    keys: tuple[int, ...]
    window: dict
    queries: tuple[int, ...] | None = None
    heads: int = 2
    extra: int = 0
    rpb: bool = True
    hidden: float | None = None
    sinks: bool = False
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def neighborhood(self):
        """The neighborhood, checked."""
        return checks.neighborhood(self.keys, **self.window, queries=self.queries)

    def op(self, suffix=""):
        """An op for as many axes."""
        return getattr(natjax, f"na{len(self.keys)}d{suffix}")

    def arrays(self, dtype=jnp.float64, seed=0):
        """Array arguments that have derivatives."""
        rng = np.random.default_rng(seed)
        kv_heads = max(1, self.heads // 2)
        shapes = {
            "query": (2, *(self.queries or self.keys), self.heads, 3),
            "key": (2, *self.keys, kv_heads, 3),
            "value": (2, *self.keys, kv_heads, 2),
        }
        if self.rpb:
            shapes["rpb"] = (self.heads, *self.neighborhood.bias_shape)
        if self.extra:
            shapes["additional_keys"] = (2, self.extra, kv_heads, 3)
            shapes["additional_values"] = (2, self.extra, kv_heads, 2)
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        return {k: jnp.asarray(rng.standard_normal(v), dtype) for k, v in shapes.items()}

    @property
    def key_mask(self):
        """Which keys are there: the share asked for, and none of the first image's first half."""
        if self.hidden is None:
            return None
        mask = np.random.default_rng(1).random((2, *self.keys)) >= self.hidden
        mask[0].reshape(-1)[: math.prod(self.keys) // 2] = False
        return jnp.asarray(mask)

    def fused(self, implementation):
        """Output and log-sum-exp, where minus infinity is written as 0 so that it has a tangent."""
        op = self.op()
        options = {**self.window, **self.options, "implementation": implementation}
        if "dropout_rate" in options:
            options["dropout_key"] = jax.random.key(3)

        def run(arrays):
            out, lse = op(**arrays, key_mask=self.key_mask, return_lse=True, **options)
            return out, jnp.where(jnp.isneginf(lse), 0.0, lse)

        return run

    def unfused(self, implementation):
        """Output and weights of the halves, of which a hidden slot has none."""
        options = {**self.window, "key_mask": self.key_mask, "implementation": implementation}

        def run(arrays):
            logits = self.op("_qk")(
                arrays["query"], arrays["key"], rpb=arrays.get("rpb"), **options
            )
            seen = jnp.isfinite(logits)
            weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits, 0.0)), 0.0)
            return self.op("_av")(weights, arrays["value"], **options), weights

        return run


@st.composite
def cases(draw):
    """Calls with anything along any axis, as small as they can be."""
    axes = draw(st.lists(windows.frames(max_length=9, periodic=None), min_size=1, max_size=2))
    ratio = tuple(draw(st.integers(1, 2)) for _ in axes)
    window = {
        name: tuple(getattr(axis, name) for axis in axes)
        for name in ("kernel_size", "stride", "dilation", "is_causal", "is_periodic", "length")
    }
    window["query_ratio"] = ratio
    window["query_offset"] = tuple(a.queries[0] * r for a, r in zip(axes, ratio, strict=True))
    window["key_offset"] = tuple(axis.keys[0] for axis in axes)
    options = {}
    if draw(st.booleans()):
        options["dropout_rate"] = 0.3
    if draw(st.booleans()):
        options["logit_soft_cap"] = 1.5
    return Case(
        name="drawn",
        keys=tuple(axis.num_keys for axis in axes),
        window=window,
        queries=tuple(a.num_queries * r for a, r in zip(axes, ratio, strict=True)),
        extra=draw(st.integers(0, 1)),
        rpb=draw(st.booleans()),
        hidden=draw(st.sampled_from([None, 0.5])),
        sinks=draw(st.booleans()),
        options=options,
    )


CASES = (
    Case(name="periodic", keys=(17,), window={"kernel_size": 5, "is_periodic": True}),
    Case(
        name="periodic-window-is-input-even",
        keys=(8,),
        window={"kernel_size": 8, "is_periodic": True},
    ),
    Case(
        name="periodic-dilation-stride",
        keys=(24,),
        window={"kernel_size": 5, "dilation": 2, "stride": 3, "is_periodic": True},
        extra=2,
    ),
    Case(
        name="one-periodic-axis-one-causal",
        keys=(7, 10),
        window={"kernel_size": (3, 4), "is_causal": (True, False), "is_periodic": (False, True)},
    ),
    Case(name="mask", keys=(6, 7), window={"kernel_size": 3}, hidden=0.4),
    Case(
        name="mask-extra-stride",
        keys=(19,),
        window={"kernel_size": 4, "stride": 2, "dilation": 2},
        hidden=0.6,
        extra=1,
    ),
    Case(
        name="part",
        keys=(13,),
        queries=(7,),
        window={"kernel_size": 5, "query_offset": 3, "key_offset": 1, "length": 20},
    ),
    Case(
        name="part-ragged-dilation",
        keys=(15,),
        queries=(4,),
        window={"kernel_size": 3, "dilation": 3, "query_offset": 7, "key_offset": 2, "length": 23},
    ),
    Case(
        name="part-of-a-circle",
        keys=(12,),
        queries=(5,),
        window={
            "kernel_size": 4,
            "dilation": 2,
            "is_periodic": True,
            "query_offset": 0,
            "key_offset": 15,
            "length": 20,
        },
    ),
    Case(
        name="one-query-of-a-cache",
        keys=(6, 4),
        queries=(1, 4),
        window={
            "kernel_size": (3, 3),
            "is_causal": (True, False),
            "query_offset": (5, 0),
            "length": (9, 4),
            "key_offset": 0,
        },
    ),
    Case(
        name="finer-queries",
        keys=(5, 6),
        queries=(10, 18),
        window={"kernel_size": (3, 4), "query_ratio": (2, 3), "is_periodic": (False, True)},
    ),
    Case(
        name="everything",
        keys=(4, 9, 6),
        queries=(4, 6, 12),
        window={
            "kernel_size": (2, 3, 3),
            "stride": (2, 1, 2),
            "dilation": (1, 2, 2),
            "is_causal": (True, False, False),
            "is_periodic": (False, False, True),
            "query_ratio": (1, 2, 2),
            "query_offset": (0, 8, 0),
            "key_offset": (0, 1, 0),
            "length": (4, 10, 6),
        },
        hidden=0.3,
        extra=2,
        sinks=True,
        options={"logit_soft_cap": 2.0, "dropout_rate": 0.25},
    ),
)


def named(name):
    """The case of a name."""
    (case,) = (case for case in CASES if case.name == name)
    return case
