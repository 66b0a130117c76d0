"""Segmentors and detectors: files of mmsegmentation and mmdetection, and natjax's, bit for bit."""

import dataclasses
import json

import golden_detection
import golden_upernet
import goldens
import numpy as np
import pytest
from safetensors import safe_open
from torch_writer import tensors, zip_file

import natjax
from natjax.backbones.variants import VARIANTS
from natjax.cli import main
from natjax.dense.detection.variants import DETECTORS
from natjax.dense.segmentation.variants import SEGMENTORS
from natjax.registry import FAMILIES, abstract
from natjax.weights import WeightsError, convert_weights
from natjax.weights.formats import read_file
from natjax.weights.load import named_params
from natjax.weights.structure import read_config, write_metadata

CONFIGS = {
    "upernet_dinats": golden_upernet.config,
    "maskrcnn_nat": golden_detection.config,
    "cascade_dinat": golden_detection.config,
}
# Where the models by name are, for the time of a test with one more.
KNOWN = {"upernet_dinats": SEGMENTORS, "maskrcnn_nat": DETECTORS, "cascade_dinat": DETECTORS}


@pytest.fixture(params=CONFIGS)
def golden(request, tmp_path):
    """Name, config and file of a small model, as the official training leaves it."""
    name = request.param
    content, data = tensors(goldens.under(name, "param"))
    path = tmp_path / "epoch_36.pth"
    path.write_bytes(zip_file({"meta": {"epoch": 36}, "state_dict": content}, data))
    return name, CONFIGS[name](name), path


def arrays(path):
    return dict(read_file(path).content)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_there_and_back_is_the_identity(golden, tmp_path, monkeypatch, capsys):
    """Found by structure, and on the way back by what natjax wrote beside the weights."""
    name, config, path = golden
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    with monkeypatch.context() as patch:
        patch.setitem(KNOWN[name], "golden", config)
        assert main(["convert", str(path), str(ours)]) == 0
    assert "arrays of golden with natjax names" in capsys.readouterr().out
    assert arrays(ours).keys() == named_params(abstract(config)).keys()
    with safe_open(ours, "numpy") as file:
        assert read_config(file.metadata()) == config
    assert main(["convert", str(ours), str(back)]) == 0
    assert_same(arrays(back), goldens.under(name, "param"))
    model = abstract(config)
    assert not natjax.load_weights(model, ours).skipped
    natjax.save_weights(model, tmp_path / "saved.safetensors")
    saved = arrays(tmp_path / "saved.safetensors")  # JAX has no integers of 64 bits
    wide = {n: x.astype(np.int64) if x.dtype == np.int32 else x for n, x in saved.items()}
    assert_same(wide, arrays(ours))


def test_a_backbone_is_taken_out_by_its_name(golden, tmp_path, monkeypatch):
    name, config, path = golden
    monkeypatch.setitem(VARIANTS, "golden_backbone", config.backbone)
    done = convert_weights(path, tmp_path / "x.safetensors", model="golden_backbone")
    assert done.config == config.backbone
    assert "roi_head" in done.read.left_out or "decode_head" in done.read.left_out
    official = {
        key.removeprefix("backbone."): array
        for key, array in goldens.under(name, "param").items()
        if key.startswith("backbone.")
    }
    convert_weights(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert_same(arrays(tmp_path / "y.pth"), official)


def test_what_does_not_tell_and_what_is_not_there(golden, tmp_path, monkeypatch):
    name, config, path = golden
    with pytest.raises(WeightsError, match="is of no published model"):
        convert_weights(path, tmp_path / "x.pth")
    for known in ("one", "other"):
        monkeypatch.setitem(KNOWN[name], known, config)
    with pytest.raises(WeightsError, match=r"may be one or other, .* pass model='one' or"):
        convert_weights(path, tmp_path / "x.pth")
    assert convert_weights(path, tmp_path / "x.pth", model="other").model == "other"
    with pytest.raises(WeightsError, match=r"drop_head .* is for classifiers"):
        convert_weights(path, tmp_path / "y.pth", model="one", drop_head=True)
    with pytest.raises(WeightsError, match="naming must be one of natjax, official; got 'hf'"):
        convert_weights(path, tmp_path / "y.pth", model="one", naming="hf")
    assert not (tmp_path / "y.pth").exists()


def test_other_classes_and_channels_are_seen(golden, tmp_path, monkeypatch):
    name, config, _ = golden
    backbone = dataclasses.replace(config.backbone, in_channels=1)
    changed = dataclasses.replace(config, num_classes=2, backbone=backbone)
    zeros = {n: np.zeros(p.shape, p.dtype) for n, p in named_params(abstract(changed)).items()}
    monkeypatch.setitem(KNOWN[name], "golden", config)
    assert convert_weights(zeros, tmp_path / "x.safetensors").config == changed


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_says_what_no_array_shows(name, tmp_path, monkeypatch):
    """Dilations: taken from the file, and no others are taken for them."""
    config = CONFIGS[name](name)
    dilations = tuple((2, *(1,) * (depth - 1)) for depth in config.backbone.depths)
    monkeypatch.setitem(KNOWN[name], "golden", config)
    monkeypatch.setitem(VARIANTS, "golden_backbone", config.backbone)
    changed = dataclasses.replace(
        config, backbone=dataclasses.replace(config.backbone, dilations=dilations)
    )
    model = abstract(changed)
    for param in named_params(model).values():
        param.set_value(np.zeros(param.shape, param.dtype))
    path = tmp_path / "x.safetensors"
    natjax.save_weights(model, path)
    create = natjax.create_segmentor if name.startswith("upernet") else natjax.create_detector
    assert create("golden", weights=path).config == changed
    assert create("golden", weights=path, dilations=list(dilations)).config == changed
    with pytest.raises(ValueError, match="dilations must be left open or be as in"):
        create("golden", weights=path, dilations=config.backbone.dilations)
    with pytest.raises(WeightsError, match="holds weights of dilations"):
        natjax.load_weights(abstract(config), path)
    model.backbone = model.backbone.with_dilations(config.backbone.dilations)
    natjax.save_weights(model, tmp_path / "y.safetensors")
    assert create("golden", weights=tmp_path / "y.safetensors").config == config
    backbone = natjax.create_model("golden_backbone", backbone=path)
    assert backbone.config.dilations == dilations
    with pytest.raises(TypeError, match=r"there is no option 'dilation' of a .* dilations, kernel"):
        create("golden", weights=path, dilation=2)


@pytest.mark.parametrize(
    "name", ["upernet_dinat_large", "mask_rcnn_nat_mini", "cascade_mask_rcnn_dinat_s_tiny"]
)
def test_configs_come_back(name):
    config = natjax.registry.find_config(name)
    metadata = write_metadata(config, name, "natjax")
    assert read_config(metadata) == config
    assert metadata["natjax.model"] == name
    assert json.loads(metadata["natjax.config"])["family"] == FAMILIES[type(config)].__name__


HOSTILE = [
    {"rpn": 5},
    {"rpn": {"scale": [1]}},
    {"rpn": None},
    {"backbone": {"family": "MaskRCNN"}},
    {"backbone": 3},
    {"backbone": [1, 2, 3, "x"]},
    {"stages": {}},
    {"stages": [{}] * 1000},
    {"stages": [3]},
    {"box_head": {"convs": 10**9}},
    {"box_head": {"loss": "l3"}},
    {"box_head": {"loss": ["l1"]}},
    {"sampler": {"number": 10**400, "positive_fraction": 0.5}},
    {"summary_size": [[1], 2]},
    {"unknown": 1},
    {"max_detections": True},
    {"score_threshold": "0"},
]


@pytest.mark.parametrize("change", HOSTILE, ids=json.dumps)
def test_damaged_configs_are_refused(change):
    metadata = write_metadata(natjax.detector_config("mask_rcnn_nat_mini"), None, "natjax")
    config = json.dumps(json.loads(metadata["natjax.config"]) | change)
    with pytest.raises(WeightsError, match="config in the file cannot be read"):
        read_config({"natjax.config": config})
