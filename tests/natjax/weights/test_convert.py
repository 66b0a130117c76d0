"""The command ``natjax convert``, and how it finds out what model a file is of."""

import dataclasses
import json
import subprocess
import sys

import draw
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import natjax
from natjax.backbones.names import BACKBONE, HUGGING_FACE, OFFICIAL
from natjax.cli import main
from natjax.weights import WeightsError, convert_weights, model_card, published_weights
from natjax.weights.formats import read_file
from natjax.weights.names import by_name
from natjax.weights.save import rename_arrays
from natjax.weights.state_dict import StateDict
from natjax.weights.structure import (
    candidates,
    config_names,
    config_structure,
    find_model,
    read_config,
    source_structure,
    write_metadata,
)
from natjax.weights.torchfile.writer import write_torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model's weights in every form."""
    folder = tmp_path_factory.mktemp("weights")
    model = draw.filled(lambda rngs: natjax.create_model("nat_micro", rngs=rngs))
    for naming in ("natjax", "official", "hf"):
        natjax.save_weights(model, folder / f"{naming}.safetensors", naming=naming)
        natjax.save_weights(model, folder / f"{naming}.pth", naming=naming)
    return folder


def arrays(path):
    return dict(read_file(path).content)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == array.dtype


@pytest.mark.parametrize("middle", ["natjax.safetensors", "hf.safetensors", "hf.pth", "natjax.pth"])
def test_there_and_back_is_the_identity(middle, folder, tmp_path, capsys):
    there, back = tmp_path / middle, tmp_path / "back.pth"
    words = ["convert", str(folder / "official.pth"), str(there), "--to", middle.split(".")[0]]
    assert main(words) == 0
    assert_same(arrays(there), arrays(folder / middle))
    assert main(["convert", str(there), str(back)]) == 0
    assert back.read_bytes() == (folder / "official.pth").read_bytes()
    out = capsys.readouterr().out
    assert "levels.*.blocks.*.attn.qkv.weight" in out
    assert "arrays of nat_micro with official names" in out


def test_a_card_tells_what_the_weights_are(folder, tmp_path, capsys):
    target = tmp_path / "x.safetensors"
    assert main(["convert", str(folder / "official.pth"), str(target), "--card"]) == 0
    card = (tmp_path / "x.safetensors.md").read_text()
    assert str(tmp_path / "x.safetensors.md") in capsys.readouterr().out
    assert card.startswith("---\nlibrary_name: natjax\nlicense: mit\n")
    assert "# nat_micro" in card
    assert "official.pth" in card
    assert "published for this model" not in card  # nothing is of a model for tests
    done = dataclasses.replace(convert_weights(folder / "official.pth", target), model="nat_tiny")
    assert "| `imagenet1k` | ImageNet-1K | 224 | 83.2 top-1 |" in model_card(done, "x.pth")
    assert 'natjax.create_model("nat_tiny", weights=path)' in model_card(done, "x.pth")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes_stay_as_they_are(dtype, folder, tmp_path):
    half = {key: array.astype(dtype) for key, array in arrays(folder / "official.pth").items()}
    write_torch(tmp_path / "x.pth", half)
    convert_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    convert_weights(tmp_path / "y.safetensors", tmp_path / "z.pth")
    assert_same(arrays(tmp_path / "z.pth"), half)


def test_averaged_weights_and_other_objects(tmp_path, folder, capsys):
    official = arrays(folder / "official.pth")
    averaged = {f"state_dict_ema.{key}": array for key, array in official.items()}
    write_torch(tmp_path / "x.pth", averaged)  # no container: names with dots
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "y.pth"), "--ema"]) == 2
    assert "holds no averaged weights" in capsys.readouterr().err


def test_dropped_head(folder, tmp_path):
    done = convert_weights(
        folder / "official.pth", tmp_path / "x.safetensors", drop_head=True, naming="natjax"
    )
    found = load_file(tmp_path / "x.safetensors")
    assert done.config.num_classes == 0
    assert "norm.scale" in found
    assert not [key for key in found if key.startswith("head.")]
    model = natjax.create_model("nat_micro", weights=tmp_path / "x.safetensors", num_classes=0)
    assert model.head is None


def test_another_number_of_classes_is_seen(folder, tmp_path):
    fine_tuned = draw.filled(lambda r: natjax.create_model("nat_micro", num_classes=3, rngs=r))
    natjax.save_weights(fine_tuned, tmp_path / "x.pth")
    done = convert_weights(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert (done.model, done.config.num_classes) == ("nat_micro", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.pth x.pth", "there is no file nowhere.pth"),
        ("official.pth x.zip", "must end in one of .safetensors, .pth"),
        ("official.pth x.pth --model nat_mirco", "did you mean nat_micro"),
        ("imagenet1k x.pth", "weights 'imagenet1k' need the name of a published model"),
        ("imagenet1k x.pth --model nat_micro", "nat_micro has none"),
        ("imagenet9k x.pth --model nat_tiny", "imagenet9k, nor published weights of that name"),
        ("ftp://x/y.pth x.pth", "ftp"),
        ("broken.pth x.pth", "broken.pth"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "broken.pth").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    before = sorted(folder.iterdir())
    assert main(["convert", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("natjax: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(folder.iterdir()) == before


def test_what_does_not_fit_is_listed(folder, capsys, tmp_path):
    words = ["convert", str(folder / "official.pth"), str(tmp_path / "x.pth"), "--model"]
    assert main([*words, "nat_mini"]) == 2
    error = capsys.readouterr().err
    assert "does not fit the model: 162 missing in the file" in error
    assert "... and 142 more" in error
    assert not list(tmp_path.iterdir())


def state_of(name, naming=OFFICIAL, **options):
    """What a file of a model would hold, as shapes that take no memory."""
    model = nnx.eval_shape(lambda: natjax.create_model(name, rngs=nnx.Rngs(0), **options))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    ours = {
        ".".join(map(str, path)): np.broadcast_to(np.float32(0), param.shape)
        for path, param in flat
    }
    theirs = rename_arrays(ours, by_name(model.config.namings())[naming.name])
    roots = [root for root in naming.roots if any(key.startswith(root) for key in theirs)]
    return StateDict(f"{name}.pth", "torch", "", False, naming, roots[0], theirs, {}, {})


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("nat_tiny", {}, ["nat_tiny", "dinat_tiny"]),
        ("dinat_mini", {"num_classes": 3}, ["nat_mini", "dinat_mini"]),
        ("nat_small", {}, ["nat_small"]),
        ("dinat_small", {}, ["dinat_small"]),
        ("dinat_large", {}, ["dinat_large", "dinat_large_384"]),
        ("dinat_large_21k", {}, ["dinat_large_21k"]),
        ("dinat_large_384_11x11", {}, ["dinat_large_384_11x11"]),
        ("dinat_s_tiny", {}, ["dinat_s_tiny"]),
        ("dinat_s_tiny", {"output_norms": True}, ["dinat_s_tiny"]),
        ("vitrpb_small", {}, ["vitrpb_small"]),
        ("nat_isotropic_small", {}, ["nat_isotropic_small", "dinat_isotropic_small"]),
    ],
)
def test_models_are_known_by_their_shapes(name, options, expected):
    assert candidates(state_of(name, **options)) == expected


@pytest.mark.parametrize("name", ["nat_mini", "dinat_mini"])
def test_hugging_face_says_the_family(name):
    assert candidates(state_of(name, HUGGING_FACE)) == [name]
    assert candidates(state_of(name, HUGGING_FACE, num_classes=0)) == ["nat_mini", "dinat_mini"]


def test_ambiguity_is_named():
    state = state_of("nat_mini")
    with pytest.raises(
        WeightsError, match=r"nat_mini\.pth may be nat_mini or dinat_mini, .* pass "
    ):
        find_model(state, None)
    name, config = find_model(state, "dinat_mini")
    assert config.dilations[0] == (1, 8, 1)
    state.metadata.update(write_metadata(config, name, "official"))
    assert find_model(state, None) == ("dinat_mini", config)


@pytest.mark.parametrize("name", ["nat_micro", "dinat_s_tiny", "vitrpb_small"])
def test_structure_of_shapes_is_that_of_the_config(name):
    config = natjax.create.model_config(name)
    for naming in (OFFICIAL, BACKBONE[0]):
        assert source_structure(state_of(name, naming)) == config_structure(config)
    assert config_names(config) == [name]


def test_a_name_without_its_parts(tmp_path):
    write_torch(tmp_path / "x.pth", {"patch_embed.norm.weight": np.ones(3, np.float32)})
    with pytest.raises(WeightsError, match="has the names of a NAT but not its parts"):
        convert_weights(tmp_path / "x.pth", tmp_path / "y.pth")


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        "[1]",
        '{"family": "ResNet"}',
        '{"family": "NAT", "dim": 3}',
        '{"family": "NAT", "dim": 8, "depths": [1000000000000], "num_heads": [1]}',
        '{"family": "Isotropic", "dim": 8, "depth": 1000000000000, "num_heads": 1}',
        '{"family": "NAT", "dim": 8, "depths": "x", "num_heads": [1]}',
        "[" * 100_000,
    ],
)
def test_damaged_configs_are_refused(config):
    with pytest.raises(WeightsError, match="config in the file cannot be read"):
        read_config({"natjax.config": config})


def test_configs_come_back():
    for name in ("dinat_large_384", "vitrpb_small"):
        config = natjax.create.model_config(name)
        metadata = write_metadata(config, name, "natjax")
        assert all(isinstance(text, str) for text in metadata.values())
        assert read_config(metadata) == config
    assert read_config({}) is None


def test_config_and_arrays_of_two_models(folder, tmp_path):
    with safe_open(folder / "natjax.safetensors", "numpy") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["natjax.config"])
    metadata["natjax.config"] = json.dumps(config | {"depths": [2, 5], "dilations": []})
    save_file(load_file(folder / "natjax.safetensors"), tmp_path / "x.safetensors", metadata)
    with pytest.raises(WeightsError, match="arrays and config in the file are of two models"):
        convert_weights(tmp_path / "x.safetensors", tmp_path / "y.pth")


def test_the_command_needs_no_training_library(folder, tmp_path):
    """As after ``pip install natjax``."""
    code = f"""
import sys
for name in ("grain", "tensorflow_datasets", "PIL", "tyro", "matplotlib", "sklearn", "torch"):
    sys.modules[name] = None
from natjax.cli import main
sys.exit(main(["convert", {str(folder / "official.pth")!r}, {str(tmp_path / "x.safetensors")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert published_weights("nat_micro") == []
