"""The layer that all models stack."""

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.nn.block import Block


def test_blocks_store_the_residual_stream_and_its_cotangent_on_a_cpu():
    """Else XLA sums the cotangents of all later blocks anew for the gradient of each weight."""
    options = {"mlp_ratio": 2.0, "dtype": jnp.float32, "param_dtype": jnp.float32}
    blocks = nnx.List([Block(8, 2, 3, 1, **options, rngs=nnx.Rngs(i)) for i in range(3)])
    graph, weights = nnx.split(blocks)

    def loss(weights, x):
        for block in nnx.merge(graph, weights):
            x = block(x)
        return jnp.sum(x**2)

    program = str(jax.make_jaxpr(jax.grad(loss))(weights, jnp.ones((1, 4, 4, 8))))
    stored = [line for line in program.splitlines() if "optimization_barrier" in line]
    assert sum("f32[1,4,4,8] = optimization_barrier" in line for line in stored) == 2 * 2 * 3
