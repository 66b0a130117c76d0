"""Whole segmentors from mmsegmentation's files and back, bit for bit."""

import dataclasses
import json

import golden_upernet
import goldens
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_writer import tensors, zip_file

import natjax
from natjax.dense.segmentation.variants import SEGMENTORS
from natjax.weights import WeightsError, published_weights
from natjax.weights.formats import read_file
from natjax.weights.load import published_names
from natjax.weights.published import find_published

NAME = "upernet_dinats"


@pytest.fixture
def checkpoint(tmp_path):
    """A file as mmcv writes it."""
    path = tmp_path / "upernet.pth"
    state, data = tensors(goldens.under(NAME, "param"))
    path.write_bytes(zip_file({"meta": {"epoch": 7}, "state_dict": state}, data))
    return path


def _abstract(**changes):
    config = dataclasses.replace(golden_upernet.config(NAME), **changes)
    return nnx.eval_shape(lambda: natjax.UPerNet(config, rngs=nnx.Rngs(0)))


def test_there_and_back(checkpoint, tmp_path):
    model = _abstract()
    report = natjax.load_weights(model, checkpoint)
    assert not report.skipped
    expected = golden_upernet.model(NAME)
    found = golden_upernet.named(nnx.state(model))
    for key, value in golden_upernet.named(nnx.state(expected)).items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    natjax.save_weights(model, tmp_path / "back.pth", naming="official")
    back = read_file(tmp_path / "back.pth").content
    official = goldens.under(NAME, "param")
    assert back.keys() == official.keys()
    for key, array in official.items():
        assert back[key].dtype == array.dtype, key
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    natjax.save_weights(model, tmp_path / "ours.safetensors")
    again = _abstract()
    natjax.load_weights(again, tmp_path / "ours.safetensors")
    for key, value in golden_upernet.named(nnx.state(again)).items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_other_classes(checkpoint):
    model = _abstract(num_classes=3)
    with pytest.raises(WeightsError, match="conv_seg"):
        natjax.load_weights(model, checkpoint)
    model = natjax.UPerNet(model.config, rngs=nnx.Rngs(0))
    drawn = model.decode_head.conv_seg.kernel[...]
    natjax.load_weights(model, checkpoint, drop_head=True)
    np.testing.assert_array_equal(model.decode_head.conv_seg.kernel[...], drawn)
    loaded = golden_upernet.model(NAME).decode_head.bottleneck.conv.kernel[...]
    np.testing.assert_array_equal(model.decode_head.bottleneck.conv.kernel[...], loaded)


def test_every_key_of_a_published_file_has_a_place():
    """The complete list of the official UPerNet on NAT-Mini: names, and shapes of all arrays."""
    path = goldens.FULL / "dense" / "keys" / "upernet_nat_mini_512x512_160k_ade20k.txt"
    if not path.exists():
        pytest.skip(f"needs the full set of goldens: there is no {path.name}")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    arrays = {
        key: np.broadcast_to(np.zeros((), dtype), json.loads(shape)) for key, shape, dtype in rows
    }
    model = nnx.eval_shape(lambda: natjax.create_segmentor("upernet_nat_mini", rngs=nnx.Rngs(0)))
    report = natjax.load_weights(model, arrays)
    assert not report.skipped
    assert len(arrays) == 339


@pytest.mark.parametrize("name", [name for name in SEGMENTORS if name != "upernet_nat_micro"])
def test_published_weights_by_name(name):
    assert published_weights(name) == ["ade20k"]
    entry = find_published([name], "ade20k")
    assert entry.whole == name
    assert find_published([name], "ade20k_upernet") is entry
    assert "mIoU" in entry.accuracy
    assert entry.address.endswith(".pth")


def test_a_segmentor_knows_its_published_name():
    for name in ("upernet_nat_mini", "upernet_dinat_mini"):
        model = nnx.eval_shape(
            lambda name=name: natjax.create_segmentor(name, num_classes=3, rngs=nnx.Rngs(0))
        )
        assert published_names(model) == [name]
    assert published_names(golden_upernet.model(NAME)) == []


def test_create_with_weights(checkpoint, monkeypatch, tmp_path):
    config = golden_upernet.config(NAME)
    monkeypatch.setitem(SEGMENTORS, "upernet_golden", config)
    model = natjax.create_segmentor("upernet_golden", weights=checkpoint)
    image = jnp.ones((1, 20, 24, 3))
    expected = nnx.jit(golden_upernet.model(NAME))(image)
    np.testing.assert_array_equal(nnx.jit(model)(image), expected)
    with pytest.raises(ValueError, match="rngs must be given where weights are not"):
        natjax.create_segmentor("upernet_golden")
    with pytest.raises(ValueError, match="rngs must be given to draw what is not loaded"):
        natjax.create_segmentor("upernet_golden", weights=checkpoint, drop_head=True)
