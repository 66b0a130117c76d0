"""Every published segmentor: exact parameters, FLOPs, dilations."""

import re

import jax
import pytest
import torch_keys
from flax import nnx

import natjax
from natjax.dense.segmentation.variants import SEGMENTORS
from natjax.summary import count_flops
from natjax.weights.published import find_published

# Parameters and keys of the state dict, measured on the official models; published FLOPs in units
# of 1e9 (mIoU tables of NAT and DiNAT).
PUBLISHED = {
    "upernet_nat_mini": (49_779_698, 339, 900),
    "upernet_nat_tiny": (57_697_106, 495, 934),
    "upernet_nat_small": (82_396_805, 555, 1010),
    "upernet_nat_base": (123_281_144, 555, 1137),
    "upernet_dinat_mini": (49_779_698, 339, 900),
    "upernet_dinat_tiny": (57_697_106, 495, 934),
    "upernet_dinat_small": (82_373_189, 495, 1010),
    "upernet_dinat_base": (123_281_144, 555, 1137),
    "upernet_dinat_large": (238_170_974, 495, 2335),
    "upernet_dinat_s_tiny": (59_941_862, 259, 941),
    "upernet_dinat_s_small": (81_259_766, 415, 1030),
    "upernet_dinat_s_base": (121_279_716, 415, 1173),
    "upernet_dinat_s_large": (233_759_936, 415, 2466),
}


def test_every_published_name_is_here():
    assert set(natjax.list_models(kind="segmentor")) == set(PUBLISHED) | {"upernet_nat_micro"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops(name):
    parameters, keys, gflops = PUBLISHED[name]
    model = nnx.eval_shape(lambda: natjax.create_segmentor(name, rngs=nnx.Rngs(0)))
    assert torch_keys.num_params(model) == parameters
    assert len(jax.tree.leaves(nnx.state(model))) == keys
    config = SEGMENTORS[name]
    assert round(count_flops(config, config.summary_size) / 1e9) == gflops


def test_summary():
    summary = natjax.model_summary("upernet_dinat_mini")
    assert (summary.kind, summary.parameters) == ("segmentor", 49_779_698)
    assert summary.image_size == (512, 2048)
    assert natjax.model_summary("upernet_dinat_mini", 512).flops < summary.flops / 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_dilations_are_those_of_the_published_weights(name):
    backbone = SEGMENTORS[name].backbone
    options = find_published([name.removeprefix("upernet_")], "ade20k_upernet").options
    assert options["output_norms"]
    ones = tuple((1,) * depth for depth in backbone.depths)
    assert backbone.dilations == options.get("dilations", ones)


def test_dilations_spelled_out():
    third = (1, 2, 1, 3, 1, 4)
    assert SEGMENTORS["upernet_dinat_mini"].backbone.dilations == (
        (1, 16, 1),
        (1, 4, 1, 8),
        third,
        (1, 2, 1, 2, 1),
    )
    assert SEGMENTORS["upernet_dinat_s_large"].backbone.dilations == (
        (1, 20),
        (1, 10),
        (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
        (1, 2),
    )


def test_drop_path_rates():
    rates = {name: config.backbone.drop_path for name, config in SEGMENTORS.items()}
    half = ("nat_small", "nat_base", "dinat_small", "dinat_base")
    assert {name for name, rate in rates.items() if rate == 0.5} == {f"upernet_{n}" for n in half}
    mini = {"upernet_nat_mini", "upernet_dinat_mini"}
    assert {name for name, rate in rates.items() if rate == 0.2} == mini
    assert {rates[name] for name in PUBLISHED} == {0.2, 0.3, 0.5}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("upernet_nat_tinny", "did you mean upernet_nat_tiny"),
        ("nat_tiny", re.escape("a segmentor; 'nat_tiny' is made by natjax.create_model")),
        ("fcn", "one of the 14 segmentors; got 'fcn'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        natjax.segmentor_config(name)
