"""Whole detectors from mmdetection's files and back, bit by bit."""

import dataclasses

import golden_detection
import goldens
import jax
import numpy as np
import pytest
import torch_writer
from flax import nnx

import natjax
from natjax import MaskRCNN
from natjax.weights import MismatchError, WeightsError
from natjax.weights.formats import read_file
from natjax.weights.load import named_params, published_names
from natjax.weights.names import namings_of

NAMES = golden_detection.NAMES


def _abstract(name, **changes):

    config = dataclasses.replace(golden_detection.config(name), **changes)
    return nnx.eval_shape(lambda: MaskRCNN(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, tmp_path):
    """The file of an mmdetection run: weights under ``state_dict``, beside them text."""
    arrays = goldens.under(name, "param")
    content, data = torch_writer.tensors(arrays)
    run = {"meta": {"epoch": 36}, "state_dict": content}
    (tmp_path / "epoch_36.pth").write_bytes(torch_writer.zip_file(run, data))
    model = _abstract(name)
    report = natjax.load_weights(model, tmp_path / "epoch_36.pth")
    assert (report.naming, report.container) == ("official", "state_dict")
    assert not report.skipped

    known = named_params(golden_detection.model(name))
    for path, variable in named_params(model).items():
        np.testing.assert_array_equal(variable.get_value(), known[path].get_value(), err_msg=path)

    for suffix in (".pth", ".safetensors"):
        natjax.save_weights(model, tmp_path / f"again{suffix}", naming="official")
        again = read_file(tmp_path / f"again{suffix}").content
        assert again.keys() == arrays.keys()
        for key, array in arrays.items():
            assert again[key].dtype == array.dtype, key
            np.testing.assert_array_equal(again[key], array, err_msg=key)


@pytest.mark.parametrize("naming", ["natjax", "official"])
def test_the_backbone_of_a_detector(naming, tmp_path):
    model = golden_detection.model("maskrcnn_nat")
    natjax.save_weights(model, tmp_path / "x.safetensors", naming=naming)
    backbone = nnx.eval_shape(lambda: natjax.NAT(model.config.backbone, rngs=nnx.Rngs(0)))
    natjax.load_weights(backbone, tmp_path / "x.safetensors")
    ours, theirs = named_params(backbone), named_params(model.backbone)
    assert all(np.array_equal(ours[n].get_value(), p.get_value()) for n, p in theirs.items())


@pytest.mark.parametrize("name", NAMES)
def test_other_classes(name):
    arrays = goldens.under(name, "param")
    model = _abstract(name, num_classes=9)
    with pytest.raises(MismatchError, match="drop_head=True"):
        natjax.load_weights(model, arrays)
    report = natjax.load_weights(model, arrays, drop_head=True)
    stages = len(model.config.stages)
    assert len(report.dropped) == 6 * stages
    missing = {
        n for n, p in named_params(model).items() if not isinstance(p.get_value(), jax.Array)
    }
    assert len(missing) == 6 * stages
    assert all("fc_" in n or "conv_logits" in n for n in missing)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_keys_of_the_published_files(kind):
    """All keys and shapes of the official constructor, by the list of the full goldens."""
    path = goldens.FULL / "dense" / "keys" / f"{kind}_nat_mini_3x_coco.txt"
    if not path.exists():
        pytest.skip("the full set of goldens, with the lists of keys, is not here")
    lines = (line.split("\t") for line in path.read_text().splitlines() if "\t" in line)
    expected = {
        key: tuple(map(int, filter(None, shape[1:-1].split(",")))) for key, shape, _ in lines
    }
    model = nnx.eval_shape(lambda: natjax.create_detector(f"{kind}_nat_mini", rngs=nnx.Rngs(0)))
    shapes = {name: tuple(p.shape) for name, p in named_params(model).items()}
    bindings, nameless = namings_of(model)["official"].bind(list(shapes))
    assert not nameless
    found = {}
    for binding in bindings:
        ours = tuple(shapes[name] for name in binding.ours)
        found |= dict(zip(binding.theirs, binding.layout.their_shapes(ours), strict=True))
    assert found == expected


def test_published_names():
    config = natjax.detector_config("cascade_mask_rcnn_dinat_mini")
    model = nnx.eval_shape(
        lambda: natjax.create_detector(
            "cascade_mask_rcnn_dinat_mini", num_classes=3, drop_path=0.0, rngs=nnx.Rngs(0)
        )
    )
    assert published_names(model) == ["cascade_mask_rcnn_dinat_mini"]
    assert config.num_classes == 80
    with pytest.raises(WeightsError, match="'imagenet1k': cascade_mask_rcnn_dinat_mini has coco"):
        natjax.load_weights(model, "imagenet1k")
    for name in set(natjax.list_models(kind="detector")) - {"mask_rcnn_micro"}:
        (weights,) = natjax.weights.published_weights(name)
        assert weights == "coco"
        entry = natjax.weights.published.find_published([name], weights)
        backbone = natjax.detector_config(name).backbone
        ones = tuple((1,) * depth for depth in backbone.depths)
        assert backbone.dilations == entry.options.get("dilations", ones), name


def test_created_with_weights(tmp_path):
    drawn = natjax.create_detector("mask_rcnn_nat_mini", num_classes=2, rngs=nnx.Rngs(0))
    natjax.save_weights(drawn, tmp_path / "x.safetensors")
    loaded = natjax.create_detector(
        "mask_rcnn_nat_mini", num_classes=2, weights=tmp_path / "x.safetensors"
    )
    ours, theirs = named_params(loaded), named_params(drawn)
    assert all(np.array_equal(ours[n].get_value(), p.get_value()) for n, p in theirs.items())
    with pytest.raises(ValueError, match="rngs must be given where weights are not"):
        natjax.create_detector("mask_rcnn_nat_mini")
