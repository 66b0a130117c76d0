"""Models under `jax.set_mesh`, on the mesh that `jax.make_mesh` makes: its axes are explicit.

`tests/natjax/nn/test_explicit_mesh.py` splits parameters as well.
"""

import dataclasses

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import natjax
from natjax import NAT, Isotropic, IsotropicConfig, NATConfig

HIERARCHICAL = NATConfig(
    dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_classes=5, layer_scale=1.0
)
MODELS = {
    "overlapping": (NAT, HIERARCHICAL),
    "disjoint": (NAT, dataclasses.replace(HIERARCHICAL, overlapping=False, kernel_size=7)),
    "isotropic": (
        Isotropic,
        IsotropicConfig(
            dim=8, depth=1, num_heads=2, kernel_size=3, num_classes=5, patch_size=4, drop_path=0.2
        ),
    ),
}


def _results(model, images):
    """Logits, and the gradients of their squares in parameters and images."""
    graph, params = nnx.split(model)

    def loss(params, images):
        logits = nnx.merge(graph, params)(images, nnx.Rngs(3))
        return jnp.sum(logits**2), logits

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return jax.tree.map(np.asarray, run(params, images))


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("overlapping", False),
        ("isotropic", True),
        pytest.param("disjoint", False, marks=pytest.mark.slow),
    ],
)
def test_models_in_bfloat16_with_a_split_batch(name, remat):
    family, config = MODELS[name]
    images = draw.normal((8, 24, 24, 3))

    def build():
        return draw.filled(lambda rngs: family(config, dtype="bfloat16", remat=remat, rngs=rngs))

    expected = _results(build(), images)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
        found = _results(build(), jax.device_put(images, rows))
    # The same products, summed in another order.
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * np.abs(other).max())


@pytest.mark.oldest
def test_create_model_on_a_mesh_of_make_mesh():
    with jax.set_mesh(jax.make_mesh((8,), ("data",))):
        model = natjax.create_model("nat_micro", num_classes=10, rngs=nnx.Rngs(0))
        images = jax.device_put(jnp.ones((8, 32, 32, 3)), PartitionSpec("data"))
        logits = jax.jit(model)(images)
    assert logits.shape == (8, 10)
    assert logits.sharding.spec[0] == "data"
