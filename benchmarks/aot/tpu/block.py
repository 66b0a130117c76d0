"""Whether XLA copies or permutes what a whole block of a model hands to the kernels."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.aot.tpu import compiler
from natjax.nn.block import Block

# Of rows that fill sublanes. In 14x14 tokens XLA would rather have the batch there, and copies.
SHAPES = ((32, 56, 56, 128),)
_MOVE = re.compile(r"%\S+ = \w+\[([\d,]*)\]\S* (?:transpose|copy)\(")


def check(shape: tuple[int, ...]) -> dict[str, Any]:
    """The copies and transposes as large as a map in a block's step, under "error" if any."""
    text = compile_block(shape).as_text()
    for kernel in ("forward", "backward"):
        if f"natjax_tpu_{kernel}" not in text:
            return {"error": f"the program holds no {kernel} kernel"}
    if found := moves(text, math.prod(shape)):
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
