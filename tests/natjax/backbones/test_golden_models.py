"""The models against numbers of the official PyTorch classes.

The parameters come as they come to users: from a file with the original keys, by `load_weights`.
"""

import golden_models
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax import NAT
from natjax.weights.torchfile.writer import write_torch

FAMILIES = golden_models.FAMILIES
VALUE, GRADIENT, DOUBLE = 1e-5, 2e-5, 1e-10  # about ten times the official float32 error


def _case(family, prefix, marks):
    config, *_, case = prefix.split("/")
    return pytest.param(family, config, case, marks=marks, id=f"{family}-{prefix}")


def _cases(array, marks=()):
    """All (family, config, case) that hold ``array``; slow unless in the committed selection.

    ``marks`` are for those that are.
    """
    return [
        _case(
            family,
            prefix,
            marks if prefix in goldens.committed_cases(family, array) else pytest.mark.slow,
        )
        for family in FAMILIES
        for prefix in goldens.cases(family, array)
    ]


def _steps(model, images):
    """Everything the goldens hold of a forward pass, each computed once."""
    tokens = model.patch_embed(images)
    maps = model.maps(images) if isinstance(model, NAT) else _layers(model, tokens)
    blocks = {f"feat/block{i}": x for i, x in enumerate(maps)}
    pooled = jnp.mean(model.norm(maps[-1]), axis=(1, 2))
    return {"feat/tokens": tokens, **blocks, "pooled": pooled, "logits": model.head(pooled)}


def _layers(model, x):
    return [x := layer(x) for layer in model.layers]


def _images(arrays, case):
    return jnp.asarray(arrays[f"{case}/input"].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("family", "cfg", "case"), _cases("logits", pytest.mark.oldest))
def test_forward_and_gradients(family, cfg, case, tmp_path):
    model, arrays = golden_models.loaded(tmp_path, family, cfg), goldens.under(family, cfg)
    graph, params = nnx.split(model)
    has_gradients = f"{case}/grad/input" in arrays

    def loss(params, images):
        steps = _steps(nnx.merge(graph, params), images)
        return jnp.sum(steps["logits"] * jnp.asarray(arrays[f"{case}/cotangent"])), steps

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True) if has_gradients else loss
    result = jax.jit(run)(params, _images(arrays, case))
    (_, steps), gradients = result if has_gradients else (result, None)

    for name, step in steps.items():
        assert goldens.error(step, arrays[f"{case}/{name}"]) < VALUE, name
    if gradients is None:
        return
    assert (
        goldens.error(gradients[1].transpose(0, 3, 1, 2), arrays[f"{case}/grad/input"]) < GRADIENT
    )
    ours = torch_keys.flat_params(gradients[0])
    theirs = torch_keys.to_ours(goldens.under(family, f"{cfg}/{case}/grad/param"))
    assert theirs.keys() == ours.keys() or not theirs
    for name, gradient in theirs.items():
        assert goldens.error(ours[name], gradient) < GRADIENT, name


@pytest.mark.parametrize(("family", "cfg", "case"), _cases("logits64"))
def test_float64(family, cfg, case, x64, tmp_path):
    model = golden_models.loaded(tmp_path, family, cfg, param_dtype=jnp.float64)
    arrays = goldens.under(family, cfg)
    logits = jax.jit(model)(_images(arrays, case).astype(jnp.float64))
    assert logits.dtype == jnp.float64
    assert goldens.error(logits, arrays[f"{case}/logits64"]) < DOUBLE


@pytest.mark.parametrize(("family", "cfg", "case"), _cases("out0"))
def test_backbone(family, cfg, case, tmp_path):
    """As it lies in the file of a detector."""
    arrays, path = goldens.under(family, cfg), tmp_path / "detector.pth"
    params = golden_models.backbone(family, cfg).items()
    write_torch(path, {f"backbone.{key}": array for key, array in params})
    model = golden_models.abstract(family, cfg, output_norms=True)
    natjax.load_weights(model, path)
    for i, out in enumerate(jax.jit(model.features)(_images(arrays, case))):
        expected = arrays[f"backbone/{case}/out{i}"].transpose(0, 2, 3, 1)
        assert goldens.error(out, expected) < VALUE, i


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_selection_is_a_part_of_the_full_set(family):
    full = goldens.load(family)
    with np.load(goldens.COMMITTED / f"{family}.npz") as committed:
        for key in committed.files:
            np.testing.assert_array_equal(committed[key], full[key])
            assert committed[key].dtype == full[key].dtype
