"""Random arrays and modules drawn with NumPy, which unlike JAX compiles nothing for it."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def normal(shape, seed=1, scale=1.0):
    """A float32 array of normal numbers."""
    draws = np.random.default_rng(seed).normal(scale=scale, size=shape)
    return jnp.asarray(draws.astype(np.float32))


def filled(build):
    """The module that ``build(rngs)`` makes, every parameter random and none of them 0."""
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        values = rng.normal(scale=0.2, size=param.shape) + (path[-1] == "scale")
        param.set_value(jnp.asarray(values.astype(param.dtype)))
    return model
