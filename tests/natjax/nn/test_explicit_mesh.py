"""Modules and whole models on a mesh as `jax.make_mesh` makes it: its axes are explicit."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw import filled, normal
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import natjax
from natjax import NAT, NATConfig

CONFIG = NATConfig(
    dim=16,
    depths=(1, 2),
    num_heads=(2, 4),
    kernel_size=3,
    dilations=((1,), (1, 2)),
    mlp_ratio=2.0,
    num_classes=10,
    drop_path=0.3,
    layer_scale=0.5,
)


def attention(rngs):
    return natjax.NeighborhoodAttention2D(
        16, 4, 3, rel_pos_bias=True, attn_drop=0.2, proj_drop=0.1, rngs=rngs
    )


def low_precision(rngs):
    return natjax.NeighborhoodAttention2D(16, 4, 3, dtype=jnp.bfloat16, rngs=rngs)


def nat(rngs):
    return NAT(CONFIG, rngs=rngs, remat=True)


MODELS = {
    "attention": (attention, (8, 6, 5, 16)),
    "bfloat16": (low_precision, (8, 6, 5, 16)),
    "nat": (nat, (8, 32, 32, 3)),
}


# Sums over devices have another order, which bfloat16 rounds.
TOLERANCE = {
    "attention": {"rtol": 2e-3, "atol": 2e-5},
    "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
    "nat": {"rtol": 2e-3, "atol": 2e-5},
}


def whole(path, array):
    return P()


def split_channels(path, array):
    """As one does with few devices for a batch: the devices share the channels of each layer."""
    if {"qkv", "fc1"} & path:
        return P(None, "model") if array.ndim == 2 else P("model")
    if {"proj", "fc2"} & path and array.ndim == 2:
        return P("model", None)
    return P("model") if "rpb" in path else P()


def split_parameters(path, array):
    """Parameters in parts, over the devices that share the batch."""
    return P("data") if array.ndim == 2 and array.shape[0] % 4 == 0 else P()


QUICK = (("bfloat16", split_channels), ("attention", split_channels), ("nat", split_channels))


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        pytest.param(
            name,
            layout,
            kind,
            id=f"{name}-{layout.__name__}-{kind.name}",
            marks=[]
            if kind == AxisType.Explicit and (name, layout) in QUICK
            else [pytest.mark.slow],
        )
        for name in MODELS
        for layout in (whole, split_channels, split_parameters)
        for kind in (AxisType.Explicit, AxisType.Auto)
    ],
)
def test_loss_and_gradients_are_those_of_one_device(name, layout, kind, mesh_of):
    build, shape = MODELS[name]
    graph, state = nnx.split(filled(build))
    inputs = normal(shape)

    def loss(state, inputs):
        model = nnx.merge(graph, state)
        out = model(inputs, nnx.Rngs(dropout=1, droppath=2)).astype(jnp.float32)
        return jnp.mean(out**2), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    expected = step(state, inputs)
    mesh = mesh_of((4, 2), ("data", "model"), kind)

    def place(path, array):
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return jax.device_put(array, NamedSharding(mesh, layout(names, array)))

    # With the mesh in the context and, where no computation is eager, without.
    contexts = [jax.set_mesh(mesh)]
    if layout is whole and kind == AxisType.Explicit:
        contexts.append(contextlib.nullcontext())
    for context in contexts:
        with context:
            placed = jax.tree_util.tree_map_with_path(place, state)
            (value, out), gradients = step(
                placed, jax.device_put(inputs, NamedSharding(mesh, P("data")))
            )
            if kind == AxisType.Explicit:
                assert jax.typeof(out).sharding.spec[0] == "data"
        actual = (value, out), gradients
        for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, **TOLERANCE[name])
