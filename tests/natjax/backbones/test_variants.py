"""Every published variant: exact parameters, FLOPs, shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax.backbones.variants import VARIANTS, alternate
from natjax.summary import count_flops, count_parameters

# Measured on the official PyTorch models: parameters, GFLOPs, keys of the state dict (for ViT
# less one buffer a block).
PUBLISHED = {
    "nat_mini": (19_984_174, 2.7133, 253),
    "nat_tiny": (27_901_582, 4.3207, 409),
    "nat_small": (50_743_297, 7.8105, 469),
    "nat_base": (89_769_652, 13.7280, 469),
    "dinat_mini": (19_984_174, 2.7133, 253),
    "dinat_tiny": (27_901_582, 4.3207, 409),
    "dinat_small": (50_719_681, 7.8105, 409),
    "dinat_base": (89_769_652, 13.7280, 469),
    "dinat_large": (200_943_514, 30.5340, 409),
    "dinat_large_384": (200_943_514, 89.7297, 409),
    "dinat_large_384_11x11": (201_144_250, 92.3499, 409),
    "dinat_large_21k": (232_976_131, 30.5660, 409),
    "dinat_large_21k_11x11": (233_176_867, 41.1811, 409),
    "dinat_s_tiny": (28_288_354, 4.5114, 173),
    "dinat_s_small": (49_606_258, 8.7721, 329),
    "dinat_s_base": (87_768_224, 15.4726, 329),
    "dinat_s_large": (196_532_476, 34.5382, 329),
    "dinat_s_large_384": (196_532_476, 101.4971, 329),
    "dinat_s_large_21k": (228_565_093, 34.5702, 329),
    "vitrpb_small": (22_080_376, 4.5838, 176 - 12),
    "vitrpb_base": (86_627_080, 17.4912, 176 - 12),
    "nat_isotropic_small": (21_999_736, 4.3197, 164),
    "nat_isotropic_base": (86_465_800, 16.9629, 164),
    "dinat_isotropic_small": (21_999_736, 4.3197, 164),
    "dinat_isotropic_base": (86_465_800, 16.9629, 164),
}
OWN = {"nat_micro"}

# Spelled out, against the helper that makes them.
DILATIONS = {
    "nat_mini": ((1,) * 3, (1,) * 4, (1,) * 6, (1,) * 5),
    "dinat_mini": ((1, 8, 1), (1, 4) * 2, (1, 2) * 3, (1,) * 5),
    "dinat_large_384": ((1, 13, 1), (1, 6) * 2, (1, 3) * 9, (1,) * 5),
    "dinat_large_384_11x11": ((1, 8, 1), (1, 4) * 2, (1, 2) * 9, (1,) * 5),
    "dinat_s_tiny": ((1, 8), (1, 4), (1, 2) * 3, (1, 1)),
    "dinat_s_large_384": ((1, 13), (1, 6), (1, 3) * 9, (1, 1)),
    "dinat_isotropic_small": (1, 2) * 6,
    "vitrpb_small": (1,) * 12,
}


@functools.cache
def _abstract(name):
    """Shapes of a model, without dilation, which would only pad small images."""
    config = VARIANTS[name]
    is_flat = isinstance(config, natjax.IsotropicConfig)
    ones = (1,) * config.depth if is_flat else tuple((1,) * depth for depth in config.depths)
    return nnx.eval_shape(lambda: natjax.create_model(name, dilations=ones, rngs=nnx.Rngs(0)))


def test_every_published_name_is_here():
    assert set(natjax.list_models(kind="classifier")) == set(PUBLISHED) | OWN


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops(name):
    parameters, gflops, keys = PUBLISHED[name]
    model, config = _abstract(name), VARIANTS[name]
    assert torch_keys.num_params(model) == parameters
    assert len(torch_keys.flat_params(model)) == keys
    assert round(count_flops(config, (config.input_size,) * 2) / 1e9, 4) == gflops


# One of each structure; the others differ in widths and rates.
STRUCTURES = {
    "nat_mini",
    "nat_small",
    "dinat_large_21k_11x11",
    "dinat_s_tiny",
    "nat_isotropic_small",
    "vitrpb_small",
    "nat_micro",
}


@pytest.mark.parametrize(
    "name",
    natjax.list_models(kind="classifier"),
)
def test_logits_shape(name):
    model, config = _abstract(name), VARIANTS[name]
    size = config.input_size if config.kernel_size is None else 32
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    logits = nnx.eval_shape(lambda model, x: model(x), model, images)
    assert logits.shape == (2, config.num_classes)
    assert logits.dtype == jnp.float32


def test_summary():
    summary = natjax.model_summary("dinat_large_21k")
    assert summary.name == "dinat_large_21k"
    assert summary.parameters == PUBLISHED["dinat_large_21k"][0]
    assert summary.image_size == (224, 224)
    assert summary.flops == count_flops(VARIANTS["dinat_large_21k"], (224, 224))


@pytest.mark.parametrize("name", DILATIONS)
def test_dilations(name):
    assert VARIANTS[name].dilations == DILATIONS[name]


def test_details_that_vary():
    has_scale = {name for name, c in VARIANTS.items() if getattr(c, "layer_scale", None)}
    assert has_scale == {"nat_small", "nat_base", "dinat_base"}
    for name, config in VARIANTS.items():
        assert config.input_size == (384 if "384" in name else 32 if name in OWN else 224)
        if name not in OWN:
            assert config.num_classes == (21841 if "21k" in name else 1000)
        if config.kernel_size is not None and name not in OWN:
            assert config.kernel_size == (11 if "11x11" in name else 7)
    rates = {name: config.drop_path for name, config in VARIANTS.items()}
    assert rates["dinat_s_large"] == rates["dinat_large"] == 0.35
    assert rates["dinat_large_21k"] == 0.2
    assert rates["vitrpb_base"] == 0.4


@pytest.mark.parametrize("name", natjax.list_models(kind="classifier"))
def test_published_dilations_fit_the_published_size(name):
    """K * d reaches at most the map; but for 11x11 at 224, which pads and always has."""
    config = VARIANTS[name]
    if isinstance(config, natjax.IsotropicConfig) or name == "dinat_large_21k_11x11":
        return
    for i, level in enumerate(config.dilations):
        assert config.kernel_size * max(level) <= config.input_size / 4 / 2**i


def test_drop_path_ramp():
    model = _abstract("dinat_s_tiny")
    rates = [block.drop_path_rate for level in model.layers for block in level.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])
    assert rates[0] == 0
    assert rates[-1] == 0.2


def test_summary_of_other_sizes():
    small, large = (natjax.model_summary("nat_mini", size) for size in (224, 448))
    assert small == natjax.model_summary("nat_mini", (224, 224))
    assert large.parameters == small.parameters
    assert large.flops == pytest.approx(4 * small.flops, rel=1e-3)
    assert large.image_size == (448, 448)


def test_summary_counts_output_norms():
    config = VARIANTS["nat_micro"]
    bare = dataclasses.replace(config, num_classes=0)
    backbone = dataclasses.replace(bare, output_norms=True)
    assert count_parameters(config) - count_parameters(bare) == 64 * 10 + 10
    assert count_parameters(backbone) - count_parameters(bare) == 2 * 32
    assert count_flops(config, (32, 32)) - count_flops(bare, (32, 32)) == 64 * 10
    assert count_flops(backbone, (32, 32)) - count_flops(bare, (32, 32)) == 5 * 64 * 32


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nat_tinny",), r"got 'nat_tinny'; did you mean nat_tiny"),
        (("nat_tiny", 0), r"image_size must be an integer >= 1.*got 0"),
        (("vitrpb_small", 256), r"image_size must give 14 x 14 patches of 16.*\(256, 256\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_summary_errors(args, message):
    with pytest.raises(ValueError, match=message):
        natjax.model_summary(*args)


def test_list_models_matches_patterns():
    assert natjax.list_models("dinat_s_*") == sorted(n for n in PUBLISHED if "dinat_s_" in n)
    assert natjax.list_models("*nat_mini") == [
        "cascade_mask_rcnn_dinat_mini",
        "cascade_mask_rcnn_nat_mini",
        "dinat_mini",
        "mask_rcnn_dinat_mini",
        "mask_rcnn_nat_mini",
        "nat_mini",
        "upernet_dinat_mini",
        "upernet_nat_mini",
    ]
    assert natjax.list_models("*nat_mini", kind="classifier") == ["dinat_mini", "nat_mini"]
    assert natjax.list_models("*_21k*") == sorted(n for n in PUBLISHED if "21k" in n)
    assert natjax.list_models("resnet*") == []


def test_alternate():
    assert alternate((3, 2), (5, 7)) == ((1, 5, 1), (1, 7))
    assert alternate((1,), (9,)) == ((1,),)


@pytest.mark.parametrize("name", ["nat_micro", "upernet_nat_micro", "mask_rcnn_micro"])
def test_a_model_tells_what_its_name_does(name):
    maker = getattr(natjax, natjax.registry.maker_of(name))
    model = nnx.eval_shape(lambda: maker(name, rngs=nnx.Rngs(0)))
    by_name = natjax.model_summary(name, (64, 96))
    assert model.summary((64, 96)) == dataclasses.replace(by_name, name=type(model).__name__)
