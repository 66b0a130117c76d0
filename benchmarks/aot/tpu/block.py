"""Whether XLA copies or permutes what programs of several ops hand to the kernels: a whole block of
a model; and the unfused ops, with a softmax between them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import natjax
from benchmarks.aot.tpu import compiler
from natjax.nn.block import Block

# Of rows that fill sublanes. In 14x14 tokens XLA would rather have the batch there, and copies.
SHAPE = (32, 56, 56, 128)
_MOVE = re.compile(r"%\S+ = \w+\[([\d,]*)\]\S* (?:transpose|copy)\(")


def check(program: str) -> dict[str, Any]:
    """The copies and transposes as large as a map in a program's step, under "error" if any."""
    make, kernels = PROGRAMS[program]
    text = make(SHAPE).as_text()
    for kernel in kernels:
        if f"natjax_tpu_{kernel}" not in text:
            return {"error": f"the program holds no kernel {kernel}"}
    if found := moves(text, math.prod(SHAPE)):
        return {"error": f"maps are moved: {', '.join(found)}"}
    return {}


def moves(text: str, size: int) -> list[str]:
    """Instructions that do nothing but move an array of so many entries or more."""
    return [
        match.group(0)
        for match in _MOVE.finditer(text)
        if math.prod(int(n) for n in match.group(1).split(",") if n) >= size
    ]


def compile_block(shape: tuple[int, ...]) -> Any:
    """Output and all gradients of a block, for a v5e."""

    def make() -> Block:
        return Block(
            shape[-1],
            shape[-1] // 32,
            7,
            1,
            mlp_ratio=2.0,
            implementation="mosaic_tpu",
            dtype=jnp.bfloat16,
            param_dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    def step(state: Any, x: jax.Array) -> Any:
        def run(state: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, state)(x)

        out, pull = jax.vjp(run, state, x)
        return out, pull(out)

    with compiler.target("v5e") as sharding:
        graph, state = nnx.split(nnx.eval_shape(make))
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            (state, jax.ShapeDtypeStruct(shape, jnp.float32)),
        )
        return jax.jit(step).lower(*arguments).compile()


def compile_halves(shape: tuple[int, ...]) -> Any:
    """Output and all gradients of the unfused ops with a softmax between them, for a v5e."""

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, rpb: jax.Array) -> jax.Array:
        query, key, value = (x.reshape(*shape[:-1], -1, 32) for x in (query, key, value))
        logits = natjax.na2d_qk(query, key, 7, rpb=rpb, implementation="mosaic_tpu")
        weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(logits.dtype)
        return natjax.na2d_av(weights, value, 7, implementation="mosaic_tpu").reshape(shape)

    def step(*arrays: jax.Array) -> Any:
        out, pull = jax.vjp(attend, *arrays)
        return out, pull(out)

    with compiler.target("v5e") as sharding:
        channels = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        bias = jax.ShapeDtypeStruct((shape[-1] // 32, 13, 13), jnp.float32, sharding=sharding)
        return jax.jit(step).lower(*[channels] * 3, bias).compile()


# What compiles each program, and the kernels that it must have.
PROGRAMS: dict[str, tuple[Callable[[tuple[int, ...]], Any], tuple[str, ...]]] = {
    "a block": (compile_block, ("forward", "backward")),
    "unfused ops": (compile_halves, ("qk", "av", "qk_gradients", "av_gradients")),
}
