"""What a segmentor starts from: whole ones, and backbones that were classifiers."""

import dataclasses

import jax
import numpy as np
import pico
import pytest
from flax import nnx

import natjax
from natjax.train.config.settings import ModelConfig
from natjax.train.tasks.segmentation.presets import segment_demo
from natjax.train.tasks.segmentation.task import Segmentation
from natjax.weights import WeightsError


@pytest.fixture
def task():
    return Segmentation(
        dataclasses.replace(segment_demo(), model=ModelConfig(name=pico.SEGMENTOR), batch_size=4)
    )


def _shapes(task):
    params, statistics = jax.eval_shape(task.init)
    return {name: leaf.shape for name, leaf in (params | statistics).items()}


@pytest.mark.parametrize("naming", ["natjax", "official"])
def test_from_a_classifier(task, naming, tmp_path):
    model = natjax.create_model(pico.NAME, num_classes=3, rngs=nnx.Rngs(5))
    natjax.save_weights(model, tmp_path / "x.safetensors", naming=naming)
    initial = task.initial_weights(str(tmp_path / "x.safetensors"), _shapes(task))
    expected = nnx.to_flat_state(nnx.state(model.levels))
    for path, variable in expected:
        name = ".".join(map(str, ("backbone", "levels", *path)))
        np.testing.assert_array_equal(initial.arrays[name], variable.get_value())
    assert not [name for name in initial.arrays if "norm0" in name or "head" in name]


@pytest.mark.parametrize("classes", [11, 4])
def test_from_a_segmentor(task, classes, tmp_path):
    model = natjax.create_segmentor(pico.SEGMENTOR, num_classes=classes, rngs=nnx.Rngs(5))
    natjax.save_weights(model, tmp_path / "x.pth", naming="official")
    initial = task.initial_weights(str(tmp_path / "x.pth"), _shapes(task))
    left_out = {name for name in _shapes(task) if name not in initial.arrays}
    kinds = {name.partition(".")[2] for name in left_out}
    assert kinds == (set() if classes == 11 else {"conv_seg.kernel", "conv_seg.bias"})
    name = "decode_head.bottleneck.bn.mean"
    np.testing.assert_array_equal(initial.arrays[name], model.decode_head.bottleneck.bn.mean[...])


def test_what_does_not_fit(task, tmp_path):
    other = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))
    natjax.save_weights(other, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"nat_micro|levels"):
        task.initial_weights(str(tmp_path / "x.safetensors"), _shapes(task))
    with pytest.raises(WeightsError, match=r"there is no file nowhere\.pth"):
        task.initial_weights("nowhere.pth", _shapes(task))
