"""Models as programs that run without natjax."""

import subprocess
import sys
import textwrap

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natjax
from natjax.cli import main

ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("natjax", "flax"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
import jax, numpy as np

with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(file.read())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], *(program.call(images[:n]) for n in (1, 3)))
"""


@pytest.fixture(scope="module")
def model():
    return draw.filled(lambda rngs: natjax.create_model("nat_micro", num_classes=5, rngs=rngs))


def test_a_program_runs_where_natjax_cannot_be_imported(model, tmp_path, capsys):
    natjax.save_weights(model, tmp_path / "x.safetensors")
    words = ["export", "nat_micro", str(tmp_path / "x.stablehlo"), "--image", "40x48"]
    assert main([*words, "--weights", str(tmp_path / "x.safetensors"), "--platforms", "cpu"]) == 0
    assert "images of 40x48, batch b, on cpu" in capsys.readouterr().out
    images = np.asarray(draw.normal((3, 40, 48, 3)))
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("x.stablehlo", "images.npy", "out.npz")]
    code = textwrap.dedent(ALONE)
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    expected = model(jnp.asarray(images))
    np.testing.assert_allclose(found["arr_0"], expected[:1], atol=1e-5)
    np.testing.assert_allclose(found["arr_1"], expected, atol=1e-5)


def test_a_program_is_for_all_platforms_and_the_model_stays(model):
    exported = jax.export.deserialize(natjax.export_program(model, 32, batch=2))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.in_avals[0].shape == (2, 32, 32, 3)
    assert model.blocks()[0].attn.implementation is None


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_ops_take_a_batch_of_any_size(implementation):
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 9, 8, 2, 4), jnp.float32)
    options = {"kernel_size": 3, "implementation": implementation}

    def both(q, k, v):
        weights = jax.nn.softmax(natjax.na2d_qk(q, k, **options))
        out, pull = jax.vjp(lambda q: natjax.na2d(q, k, v, dilation=2, **options), q)
        return out, pull(out)[0], natjax.na2d_av(weights, v, **options)

    exported = jax.export.export(jax.jit(both))(shape, shape, shape)
    arrays = draw.normal((3, 2, 9, 8, 2, 4))
    for found, expected in zip(exported.call(*arrays), both(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sizes_that_are_not_known_are_refused(model):
    batch, height = jax.export.symbolic_shape("b, h")
    with pytest.raises(ValueError, match=r"images must have known sizes .* but the batch"):
        jax.export.export(jax.jit(model))(jax.ShapeDtypeStruct((batch, height, 32, 3), jnp.float32))
    tokens = jax.ShapeDtypeStruct((batch, height, 2, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"query must have known sizes .* but the batch"):
        jax.export.export(jax.jit(lambda q: natjax.na1d(q, q, q, 3)))(tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be"),
        ({"image_size": 32, "batch": 0}, "batch must be an integer >= 1; got 0"),
        ({"image_size": 32, "batch": "a b"}, "batch must be a number or a name such as 'b'"),
        ({"image_size": 32, "platforms": ["gpu"]}, "platforms must be some of cpu, cuda"),
    ],
)
def test_wrong_arguments_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        natjax.export_program(model, **options)
