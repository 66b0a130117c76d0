"""The tables of names: complete, unambiguous, and the same there and back."""

import functools

import golden_models
import goldens
import hf_keys
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.backbones.names import BACKBONE, HUGGING_FACE, OFFICIAL
from natjax.weights.load import named_params
from natjax.weights.names import (
    CONV,
    LINEAR,
    QKV_BIAS,
    QKV_KERNEL,
    ROWS,
    SAME,
    by_name,
    fill_template,
    match_template,
)
from natjax.weights.save import rename_arrays

# Entries of the official state dicts, index buffers included; one model of each kind.
STATE_DICT_KEYS = {
    "nat_mini": 253,
    "nat_small": 469,
    "dinat_small": 409,
    "dinat_s_tiny": 173,
    "vitrpb_small": 176,
    "dinat_isotropic_small": 164,
}
HAS_HF = ("nat_mini", "nat_small", "dinat_small")


@functools.cache
def shapes(name, **options):
    model = nnx.eval_shape(lambda: natjax.create_model(name, rngs=nnx.Rngs(0), **options))
    return {key: tuple(param.shape) for key, param in named_params(model).items()}, model.config


@pytest.mark.parametrize("name", STATE_DICT_KEYS)
def test_every_parameter_has_one_official_key(name):
    ours, config = shapes(name)
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape in ours.items()}
    theirs = rename_arrays(arrays, by_name(config.namings())["official"])
    assert len(theirs) == STATE_DICT_KEYS[name]


@pytest.mark.parametrize(
    ("table", "name"),
    [(n, m) for n in BACKBONE for m in STATE_DICT_KEYS if n != HUGGING_FACE or m in HAS_HF],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("output_norms", [False, True])
def test_keys_are_unique_and_lead_back(table, name, output_norms):
    ours, _ = shapes(name, output_norms=output_norms)
    for root in table.roots:
        bindings, nameless = table.bind(ours, root)
        assert not nameless
        keys = [key for binding in bindings for key in binding.theirs]
        assert len(keys) == len(set(keys))
        assert sorted(key for binding in bindings for key in binding.ours) == sorted(ours)
        for binding in bindings:
            assert all(table.translate(key, root) == binding for key in binding.theirs)
        assert sum(key.endswith(table.marker) for key in keys) == 1


def test_hugging_face_has_no_names_for_other_models():
    assert len(HUGGING_FACE.bind(shapes("dinat_s_tiny")[0])[1]) > 100


def test_names_that_only_look_alike_are_not_translated():
    for key in (
        "levels.0.blocks.1.norm1.weight.more",
        "levels.00.blocks.1.norm1.weight",
        "levels.x.blocks.1.norm1.weight",
        "levels.0.blocks.-1.norm1.weight",
        "levels.٣.blocks.1.norm1.weight",
        "patch_embedXnorm.weight",
        "norm1.weight\n",
    ):
        assert OFFICIAL.translate(key) is None
    assert HUGGING_FACE.translate("hidden_states_norms.stage0.weight") is None


def test_templates():
    assert match_template("a.{i}.b{j}", "a.12.b0") == (("i", 12), ("j", 0))
    assert fill_template("a.{i+1}.b{j}", (("i", 12), ("j", 0))) == "a.13.b0"


@pytest.mark.parametrize(
    ("layout", "theirs"),
    [
        (SAME, [(5,)]),
        (LINEAR, [(6, 4)]),
        (CONV, [(6, 4, 3, 2)]),
        (QKV_KERNEL, [(4, 4)] * 3),
        (QKV_BIAS, [(4,)] * 3),
        (ROWS, [(2, 4)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_layouts_there_and_back(layout, theirs):
    rng = np.random.default_rng(0)
    arrays = tuple(rng.normal(size=shape) for shape in theirs)
    ours = layout.to_ours(arrays)
    back = layout.to_theirs(ours)
    assert len(back) == len(arrays)
    for one, other in zip(arrays, back, strict=True):
        np.testing.assert_array_equal(one, other)
    assert layout.their_shapes(tuple(x.shape for x in ours)) == tuple(theirs)


@pytest.mark.parametrize(("family", "cfg"), [("nat", "b"), ("dinat", "b")])
def test_hugging_face_keys_are_transformers(family, cfg):
    """Against a renaming written apart from the table, from official keys."""
    official = golden_models.official(family, cfg)
    config = golden_models.abstract(family, cfg).config
    ours = _ours(official, OFFICIAL)
    expected, found = (
        hf_keys.to_hf(official, family),
        rename_arrays(ours, by_name(config.namings())["hf"]),
    )
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def _ours(arrays, table):
    result = {}
    for key in arrays:
        binding = table.translate(key)
        parts = binding.layout.to_ours(tuple(arrays[name] for name in binding.theirs))
        result |= zip(binding.ours, parts, strict=True)
    return result


@pytest.mark.parametrize("family", golden_models.FAMILIES)
def test_round_trips_are_the_identity(family):
    cfg = min(goldens.cases(family, "config"))
    official = golden_models.official(family, cfg)
    config = golden_models.abstract(family, cfg).config
    ours = _ours(official, OFFICIAL)
    assert BACKBONE[0].bind(ours)[1] == []
    back = rename_arrays(ours, by_name(config.namings())["official"])
    for key, array in official.items():
        np.testing.assert_array_equal(back.pop(key), array)
        assert array.dtype == np.float32
    assert all(key.endswith(".relative_position_index") for key in back)
    if family in ("nat", "dinat"):
        theirs = rename_arrays(ours, by_name(config.namings())["hf"])
        root = next(r for r in HUGGING_FACE.roots if f"{r}embeddings.norm.weight" in theirs)
        bindings, _ = HUGGING_FACE.bind(ours, root)
        for binding in bindings:
            again = binding.layout.to_ours(tuple(theirs.pop(key) for key in binding.theirs))
            for name, array in zip(binding.ours, again, strict=True):
                np.testing.assert_array_equal(array, ours[name])
        assert not theirs
