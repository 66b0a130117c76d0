"""What is measured: our kernels, "xla", and JAX's splash attention with the same mask."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool

from natjax.kernels.tuning import problems
from natjax.kernels.tuning.problems import Problem

type Mode = Literal["forward", "forward+backward"]
type Arrays = dict[str, Array]
type Step = Callable[[Arrays], Arrays]

MODES: tuple[Mode, ...] = ("forward", "forward+backward")
# Splash attention by the sides of its blocks. The first is what the others are compared with.
VARIANTS = ("natjax", "xla", "splash-128", "splash-256", "splash-512")


def full() -> list[Problem]:
    """The stages of NAT-Base, and DiNAT's dilation in the first, batch 32."""
    stages = [dataclasses.replace(stage, batch=32) for stage in problems.NAT_BASE]
    dilated = dataclasses.replace(stages[0], name="dinat_base-stage1-d8", dilation=8)
    return [stages[0], dilated, *stages[1:]]


def tiny() -> list[Problem]:
    """One problem so small that an interpreter does it."""
    return [Problem(name="tiny", shape=(5, 6), kernel_size=(3, 3), heads=2, head_dim=16)]


def structs_of(problem: Problem, variant: str, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the arguments: maps with whole channels, as modules have them, and the bias.

    Splash attention takes no bias, and heads before tokens, of which there are so many that blocks
    divide them.
    """
    p, names = problem, ("query", "key", "value")
    if variant.startswith("splash"):
        shape = (p.batch, p.heads, _padded(p, variant), p.head_dim)
        return {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for name in names}
    channels = (p.batch, *p.shape, p.heads * p.head_dim)
    maps = {name: jax.ShapeDtypeStruct(channels, jnp.dtype(dtype)) for name in names}
    bias = jax.ShapeDtypeStruct((p.heads, *p.neighborhood.bias_shape), jnp.float32)
    return maps | {"rpb": bias}


def arrays_of(problem: Problem, variant: str, dtype: str) -> Arrays:
    """Standard normal arguments, drawn on the device."""
    structs = structs_of(problem, variant, dtype)
    keys = jax.random.split(jax.random.key(0), len(structs))
    return {
        name: jax.random.normal(key, x.shape, x.dtype)
        for key, (name, x) in zip(keys, structs.items(), strict=True)
    }


def step(problem: Problem, variant: str, mode: Mode, *, interpret: bool) -> Step:
    """One call, from arguments to arguments of the next call.

    Forward, the output is the next query; forward and backward, the gradients of all arguments are
    the next arguments, and the query stands for the gradient of the output.
    """
    if variant.startswith("splash"):
        attend = _splash(problem, variant, interpret)
    else:
        attend = functools.partial(_attend, problem, "xla" if variant == "xla" else "mosaic_tpu")

    def forward(arrays: Arrays) -> Arrays:
        return arrays | {"query": attend(arrays)}

    def forward_and_backward(arrays: Arrays) -> Arrays:
        return jax.vjp(attend, arrays)[1](arrays["query"])[0]

    return forward if mode == "forward" else forward_and_backward


def _attend(problem: Problem, implementation: str, arrays: Arrays) -> Array:
    maps = {
        name: x.reshape(*x.shape[:-1], problem.heads, problem.head_dim)
        for name, x in arrays.items()
        if name != "rpb"
    }
    op: Any = functools.partial(problem.op, **problem.arguments, implementation=implementation)
    out = op(**maps, rpb=arrays["rpb"])
    return out.reshape(arrays["query"].shape)


def _splash(problem: Problem, variant: str, interpret: bool) -> Callable[[Arrays], Array]:
    size = _block(variant)
    mask = splash.splash_attention_mask.NumpyMask(_mask(problem, _padded(problem, variant)))
    kernel = splash.splash_attention_kernel.make_splash_mha_single_device(
        splash.splash_attention_mask.MultiHeadMask([mask] * problem.heads),
        block_sizes=splash.splash_attention_kernel.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            use_fused_bwd_kernel=True,
        ),
        interpret=interpret,
    )
    scale = problem.head_dim**-0.5

    def attend(arrays: Arrays) -> Array:
        query = (arrays["query"] * scale).astype(arrays["query"].dtype)
        return jax.vmap(kernel)(query, arrays["key"], arrays["value"])

    return attend


def _mask(problem: Problem, tokens: int) -> Bool[np.ndarray, "T T"]:
    """Who sees whom; tokens that fill up see the first one."""
    keys, visible = problem.neighborhood.neighbor_table()
    mask = np.zeros((tokens, tokens), bool)
    np.put_along_axis(mask[: len(keys)], keys, visible, axis=1)
    mask[len(keys) :, 0] = True
    return mask


def _block(variant: str) -> int:
    return int(variant.removeprefix("splash-"))


def _padded(problem: Problem, variant: str) -> int:
    return -(-problem.neighborhood.num_tokens // _block(variant)) * _block(variant)
