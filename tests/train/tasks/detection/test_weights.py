"""What a detector starts from: whole ones, and backbones that were classifiers."""

import dataclasses

import jax
import numpy as np
import pico
import pytest
from flax import nnx

import natjax
from natjax.train.config.settings import ModelConfig
from natjax.train.tasks.detection.presets import detect_demo
from natjax.train.tasks.detection.task import Detection
from natjax.train.tasks.initial_weights import backbone_name
from natjax.weights import WeightsError

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def task():
    config = dataclasses.replace(detect_demo(), model=ModelConfig(name=pico.DETECTOR))
    return Detection(config, CLASSES)


def _shapes(task):
    params, statistics = jax.eval_shape(task.init)
    return {name: leaf.shape for name, leaf in (params | statistics).items()}


def test_backbones_by_the_names_of_detectors():
    expected = {
        name: name.removeprefix("cascade_").removeprefix("mask_rcnn_")
        for name in natjax.list_models(kind="detector")
        if name not in (pico.DETECTOR, "mask_rcnn_micro")
    }
    assert {name: backbone_name(name) for name in expected} == expected
    assert backbone_name("mask_rcnn_micro") == "mask_rcnn_micro"


def test_from_a_classifier(task, tmp_path):
    shape = dataclasses.replace(
        task.model_config.backbone, num_classes=5, output_norms=False, drop_path=0.0
    )
    model = natjax.NAT(shape, rngs=nnx.Rngs(5))
    natjax.save_weights(model, tmp_path / "x.pth", naming="official")
    initial = task.initial_weights(str(tmp_path / "x.pth"), _shapes(task))
    for path, variable in nnx.to_flat_state(nnx.state(model.levels)):
        name = ".".join(map(str, ("backbone", "levels", *path)))
        np.testing.assert_array_equal(initial.arrays[name], variable.get_value())
    assert all(name.startswith("backbone.") for name in initial.arrays)
    assert not [name for name in initial.arrays if "norm0" in name or "head" in name]


@pytest.mark.parametrize("classes", [3, 5])
def test_from_a_detector(task, classes, tmp_path):
    model = natjax.create_detector(pico.DETECTOR, num_classes=classes, rngs=nnx.Rngs(5))
    natjax.save_weights(model, tmp_path / "x.pth", naming="official")
    initial = task.initial_weights(str(tmp_path / "x.pth"), _shapes(task))
    left_out = {name.rpartition(".")[0] for name in _shapes(task) if name not in initial.arrays}
    heads = {"roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"}
    heads |= {"roi_head.mask_head.conv_logits"}
    assert left_out == (set() if classes == 3 else heads)
    name = "roi_head.mask_head.upsample.kernel"
    np.testing.assert_array_equal(initial.arrays[name], model.roi_head.mask_head.upsample.kernel)


def test_what_does_not_fit(task, tmp_path):
    other = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
    natjax.save_weights(other, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="levels"):
        task.initial_weights(str(tmp_path / "x.safetensors"), _shapes(task))
