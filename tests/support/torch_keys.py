"""Parameters of the official PyTorch models as parameters of ours, for tests.

Module paths are equal; only the last part of a key and the order of the axes differ.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# (last part of the key, number of axes): (our last part, our axes in terms of theirs)
RULES = {
    ("weight", 1): ("scale", (0,)),  # LayerNorm
    ("weight", 2): ("kernel", (1, 0)),  # linear: [out, in] to [in, out]
    ("weight", 4): ("kernel", (2, 3, 1, 0)),  # convolution: OIHW to HWIO
    ("bias", 1): ("bias", (0,)),
    ("rpb", 3): ("rpb", (0, 1, 2)),
    ("gamma1", 1): ("gamma1", (0,)),
    ("gamma2", 1): ("gamma2", (0,)),
}


def to_ours(arrays):
    """Their ``{key: array}`` in our names and layouts."""
    result = {}
    for key, array in arrays.items():
        path, _, last = key.rpartition(".")
        ours, axes = RULES[last, array.ndim]
        result[f"{path}.{ours}" if path else ours] = array.transpose(axes)
    return result


def flat_params(state):
    """``{dotted path: array}`` of a module's or gradient's parameters."""
    flat = nnx.to_flat_state(nnx.state(state, nnx.Param))
    return {".".join(map(str, path)): param.get_value() for path, param in flat}


def load_params(model, arrays):
    """Set all parameters of a model, in place, from arrays in their names and layouts."""
    ours = to_ours(arrays)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    names = [".".join(map(str, path)) for path, _ in state]
    assert sorted(names) == sorted(ours)
    for name, (_, param) in zip(names, state, strict=True):
        assert param.shape == ours[name].shape, name
        param.set_value(jnp.asarray(ours[name], param.dtype))
    return model


def num_params(model):
    """Number of scalar parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
