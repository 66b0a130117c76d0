"""Models by name: which options a model gets, from the caller, the weights or the papers."""

import dataclasses

import draw
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax import NATConfig
from natjax.backbones.variants import VARIANTS
from natjax.nn.initial import initialise
from natjax.weights import WeightsError

DILATIONS = ((1, 2), (1, 2, 1, 2))
IMAGES = draw.normal((2, 32, 32, 3))


@pytest.fixture
def saved(tmp_path):
    """A file of weights of a model with many options of its own."""

    def save(**options):
        path = tmp_path / "micro.safetensors"
        model = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs, **options))
        natjax.save_weights(model, path)
        return path, model

    return save


def test_options_left_open_come_from_the_file(saved):
    path, model = saved(
        dilations=DILATIONS, num_classes=3, drop_path=0.3, dropout=0.1, in_channels=1
    )
    loaded = natjax.create_model("nat_micro", weights=path)
    assert loaded.config == model.config
    assert loaded.blocks()[1].attn.dilation == (2, 2)
    run = jax.jit(lambda model, x: model(x))
    np.testing.assert_array_equal(*(run(m, IMAGES[..., :1]) for m in (loaded, model)))
    assert natjax.create_model("nat_micro", weights=path, drop_path=0.0).config.drop_path == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilations": ((1, 1), (1,) * 4)}, r"dilations must be left open .*with_dilations"),
        ({"kernel_size": 5}, r"kernel_size must be left open .*, 3; got 5; .*with_kernel_size"),
    ],
)
def test_options_that_conflict_with_the_file(saved, options, message):
    path, _ = saved(dilations=DILATIONS)
    with pytest.raises(ValueError, match=message):
        natjax.create_model("nat_micro", weights=path, **options)


def test_equal_options_are_no_conflict(saved):
    path, model = saved(dilations=DILATIONS)
    given = [list(level) for level in DILATIONS]
    loaded = natjax.create_model("nat_micro", weights=path, dilations=given, kernel_size=3)
    assert loaded.config == model.config


def test_a_file_of_another_variant(saved, monkeypatch):
    dilated = dataclasses.replace(VARIANTS["nat_micro"], dilations=DILATIONS)
    monkeypatch.setitem(VARIANTS, "dinat_micro", dilated)
    path, _ = saved()
    with pytest.raises(ValueError, match=r"weights of nat_micro.*got name='dinat_micro'; pass"):
        natjax.create_model("dinat_micro", weights=path)


def test_load_weights_refuses_other_dilations(saved):
    path, model = saved(dilations=DILATIONS)
    other = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    with pytest.raises(WeightsError, match=r"of dilations \(\(1, 2\).*the model has \(\(1, 1\)"):
        natjax.load_weights(other, path)
    natjax.load_weights(other, path, strict=False)
    natjax.load_weights(model, path)


def test_changed_models_are_saved_as_they_are(saved, tmp_path):
    _, model = saved()
    for changed in (model.with_dilations(DILATIONS), model.with_kernel_size(5)):
        natjax.save_weights(changed, tmp_path / "changed.safetensors")
        loaded = natjax.create_model("nat_micro", weights=tmp_path / "changed.safetensors")
        assert loaded.config == changed.config


def test_a_classifier_of_another_size_is_drawn_anew(saved):
    path, model = saved()
    with pytest.warns(UserWarning, match="classifier of 3 classes is drawn anew.* have 10"):
        loaded = natjax.create_model("nat_micro", weights=path, num_classes=3, rngs=nnx.Rngs(0))
    assert loaded.head.kernel.shape == (64, 3)
    found, expected = torch_keys.flat_params(loaded), torch_keys.flat_params(model)
    for name in found.keys() - {"head.kernel", "head.bias"}:
        np.testing.assert_array_equal(found[name], expected[name])
    with (
        pytest.raises(ValueError, match=r"rngs must be given to draw .*head\.kernel"),
        pytest.warns(UserWarning, match="drawn anew"),
    ):
        natjax.create_model("nat_micro", weights=path, num_classes=3)


def test_no_classifier_needs_nothing_drawn(saved):
    path, _ = saved()
    assert natjax.create_model("nat_micro", weights=path, num_classes=0).head is None
    maps = natjax.create_model("nat_micro", weights=path, features_only=True, out_indices=(-1,))
    assert (maps.head, maps.norm) == (None, None)
    assert [x.shape for x in jax.eval_shape(lambda x: maps(x), IMAGES)] == [(2, 4, 4, 64)]


def test_backbone_takes_what_is_wanted(saved, tmp_path):
    path, model = saved()
    assert natjax.create_model("nat_micro", backbone=path).config.num_classes == 0
    _, backbone = saved(output_norms=True, dilations=DILATIONS)
    arrays = {
        f"backbone.{name}": np.asarray(value)
        for name, value in torch_keys.flat_params(backbone).items()
    }
    arrays["roi_head.weight"] = np.ones((2, 2), np.float32)
    loaded = natjax.create_model("nat_micro", backbone=arrays)
    assert loaded.config.output_norms
    np.testing.assert_array_equal(loaded.norm1.scale[...], backbone.norm1.scale[...])
    with pytest.raises(ValueError, match="weights and backbone must not both be given"):
        natjax.create_model("nat_micro", backbone=path, weights=path)
    assert model.config.num_classes == 10


@pytest.mark.oldest
def test_parameters_are_those_of_the_key():
    def make(seed):
        return natjax.create_model("nat_micro", rngs=nnx.Rngs(seed))

    first, again, other = (torch_keys.flat_params(make(seed)) for seed in (0, 0, 1))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert not np.array_equal(first["head.kernel"], other["head.kernel"])


def test_within_jit_the_layers_draw_their_parameters():
    """So that each device draws its part."""
    config = NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_classes=2)
    build = lambda rngs: natjax.NAT(config, rngs=rngs)  # noqa: E731
    inside = nnx.jit(lambda: initialise(build, nnx.Rngs(0)))()
    found, expected = map(torch_keys.flat_params, (inside, build(nnx.Rngs(0))))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-7, err_msg=name)


def test_parameters_are_drawn_as_published():
    """All at once, from the distributions that the layers draw from one by one."""
    model = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
    by_layer = torch_keys.flat_params(natjax.NAT(model.config, rngs=nnx.Rngs(0)))
    for name, value in torch_keys.flat_params(model).items():
        expected = np.asarray(by_layer[name])
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
        if value.size >= 1000:
            assert float(value.std()) == pytest.approx(float(expected.std()), rel=0.1), name
            assert abs(float(value.mean())) < 0.2 * float(value.std()), name
        elif expected.std() == 0:
            np.testing.assert_array_equal(value, expected, err_msg=name)
    bound = float(jnp.abs(model.patch_embed.proj[1].kernel[...]).max())
    assert 0.9 * 144**-0.5 < bound <= 144**-0.5


def test_no_two_parameters_are_alike():
    values = torch_keys.flat_params(natjax.create_model("nat_micro", rngs=nnx.Rngs(0)))
    drawn = {name: np.asarray(v).ravel()[:50] for name, v in values.items() if v.std() > 0}
    assert len({piece.tobytes() for piece in drawn.values()}) == len(drawn)


def test_param_dtype_of_drawn_parameters(x64):
    for dtype in ("bfloat16", "float64"):
        model = natjax.create_model("nat_micro", param_dtype=dtype, rngs=nnx.Rngs(0))
        assert {v.dtype.name for v in torch_keys.flat_params(model).values()} == {dtype}


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_implementation_is_refused_at_once():
    with pytest.raises(ValueError, match=r"implementation must be None .*got 'cuda'"):
        natjax.create_model("nat_micro", implementation="cuda", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"implementation must be None .*got 'cuda'"):
        natjax.NeighborhoodAttention1D(8, 2, 3, implementation="cuda", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features_only": True, "num_classes": 5}, "num_classes must be 0 with features_only"),
        ({"out_indices": (2,)}, r"rising integers from -2 to 1; got \(2,\)"),
        ({"out_indices": (1, 0)}, r"rising integers .*got \(1, 0\)"),
        ({"out_indices": ()}, r"rising integers .*got \(\)"),
    ],
)
def test_errors_of_feature_options(options, message):
    with pytest.raises(ValueError, match=message):
        natjax.create_model("nat_micro", rngs=nnx.Rngs(0), **options)
