"""Segmentation as the engine sees it: inputs, loss, evaluation over sizes, decay, settings."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pico
import pytest
from flax import nnx
from PIL import Image

import natjax
from natjax.dense.segmentation.loss import segmentation_loss
from natjax.train.cluster.processes import Host
from natjax.train.config.settings import ModelConfig
from natjax.train.engine.task import NoExamplesError
from natjax.train.errors import UserError
from natjax.train.tasks.registry import find_preset
from natjax.train.tasks.segmentation.config import LabelMapsConfig, SegmentationConfig
from natjax.train.tasks.segmentation.datasets.registry import get_label_maps
from natjax.train.tasks.segmentation.pairs import LabelError
from natjax.train.tasks.segmentation.presets import PRESETS, segment_demo
from natjax.train.tasks.segmentation.recipes import RECIPES
from natjax.train.tasks.segmentation.task import Segmentation

SIDE = 32


def _demo(**changes):
    config = segment_demo()
    augment = dataclasses.replace(config.augment, frame=(SIDE, SIDE), crop=SIDE)
    settings = {"augment": augment, "model": ModelConfig(name=pico.SEGMENTOR), "batch_size": 4}
    return dataclasses.replace(config, **settings | changes)


@pytest.fixture(scope="module")
def task():
    return Segmentation(_demo())


@pytest.fixture(scope="module")
def weights(task):
    return jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0})()


def test_inputs_are_normalised_and_0_where_they_fill_up(task):
    pixels = np.full((1, 3, 4, 3), 255, np.uint8)
    seen = task.inputs(jnp.asarray(pixels), jnp.array([[2, 3]], jnp.int32))
    expected = (1 - np.array(task.maps.mean)) / np.array(task.maps.std)
    np.testing.assert_allclose(seen[0, :2, :3], np.broadcast_to(expected, (2, 3, 3)), rtol=1e-5)
    assert not seen[0, 2:].any()
    assert not seen[0, :, 3:].any()


def test_training_batches_are_functions_of_seed_and_step(task):
    batches, again = task.train_batches(0, Host()), task.train_batches(1, Host())
    next(batches)
    first, second = next(batches), next(again)
    assert {name: (x.dtype.name, x.shape) for name, x in first.items()} == {
        "image": ("uint8", (4, SIDE, SIDE, 3)),
        "label": ("uint8", (4, SIDE, SIDE)),
        "size": ("int32", (4, 2)),
    }
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    halves = [next(task.train_batches(1, Host(index, 2))) for index in (0, 1)]
    for name, values in first.items():
        np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))


def test_loss_is_that_of_the_model(task, weights):
    batch = next(task.train_batches(0, Host()))
    loss = jax.jit(lambda *a: task.loss(*a, nnx.Rngs(0)))(*weights, batch)

    @jax.jit
    def expected(params, statistics):
        model = nnx.eval_shape(task.build)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            variable.set_value((params | statistics)[".".join(map(str, path))])
        images = task.inputs(jnp.asarray(batch["image"]), jnp.asarray(batch["size"]))
        heads = model.heads(images, nnx.Rngs(0))
        return segmentation_loss(*heads, jnp.asarray(batch["label"]))

    total, weight, scalars = expected(*weights)
    assert float(loss.sum) == pytest.approx(float(total), rel=1e-5)
    assert loss.weight == weight == 4 * SIDE * SIDE
    assert set(loss.scalars) == set(scalars)
    before = weights[1]["decode_head.bottleneck.bn.mean"]
    assert (loss.statistics["decode_head.bottleneck.bn.mean"] != before).any()


def _folder(path, sizes, damaged=()):
    path.joinpath("classes.txt").write_text("\n".join(map(str, range(11))))
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (path / kind / split).mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path / "images" / split / f"{i}.png")
            label = rng.integers(0, 11, (height, width)).astype(np.uint8)
            label[0] = 255
            Image.fromarray(label).save(path / "labels" / split / f"{i}.png")
            if i in damaged:
                (path / "images" / split / f"{i}.png").write_bytes(b"no picture")
    return path


def _of_folder(path, **data):
    config = LabelMapsConfig(name="label_maps", dir=path, **data)
    return Segmentation(_demo(data=config), get_label_maps(config))


def _scores(task, weights, host=None):
    measure, evaluator = jax.jit(task.measure), task.evaluator()
    for batch in task.eval_batches(host or Host()):
        evaluator.add(jax.device_get(measure(*weights, batch)))
    return evaluator.result()


def test_evaluation_has_every_image_once_whatever_its_size(tmp_path, weights):
    sizes = [(20, 30), (30, 20), (20, 30), (25, 25)]
    task = _of_folder(_folder(tmp_path, sizes))
    batches = list(task.eval_batches(Host()))
    ids = [i for batch in batches for i, m in zip(batch["id"], batch["mask"], strict=True) if m]
    assert sorted(ids) == [0, 1, 2, 3]
    assert all(len({x.shape[0] for x in batch.values()}) == 1 for batch in batches)
    scores = _scores(task, weights)
    assert scores.values["images"] == 4
    labelled = sum((height - 1) * width for height, width in sizes)
    assert scores.detail.counts.sum() == labelled
    # One image at a time, by the model itself.
    model = nnx.eval_shape(task.build)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        variable.set_value((weights[0] | weights[1])[".".join(map(str, path))])
    batch = next(b for b in batches if b["image0"].shape[1] > b["image0"].shape[2])
    logits = nnx.jit(model)(task.inputs(jnp.asarray(batch["image0"])))
    size = batch["label"].shape[1:3]
    logits = jax.image.resize(logits, (len(logits), *size, 11), "linear", antialias=False)
    guesses = task.predict(*weights, jax.tree.map(jnp.asarray, batch))["classes"]
    assert (np.argmax(np.asarray(logits), -1) == np.asarray(guesses)).mean() > 0.999


def test_what_cannot_be_read_is_left_out_and_named(tmp_path, weights, capsys):
    task = _of_folder(_folder(tmp_path, [(20, 20)] * 5, damaged=(2,)))
    scores = _scores(task, weights)
    assert scores.values["images"] == 4
    assert scores.detail.counts.sum() == 4 * 19 * 20
    assert "2.png" in capsys.readouterr().err


def test_labels_that_are_no_class_stop_the_run(tmp_path):
    path = _folder(tmp_path, [(20, 20)] * 3)
    Image.fromarray(np.full((20, 20), 11, np.uint8)).save(path / "labels" / "train" / "1.png")
    batches = _of_folder(path).train_batches(0, Host())
    with pytest.raises(LabelError, match=r"1\.png has the label 11; labels must be in 0 to 10"):
        list(itertools.islice(batches, 3))


def test_windows_scales_and_mirror_images(tmp_path, weights):
    path = _folder(tmp_path, [(24, 40)])
    plain = _scores(_of_folder(path), weights)
    views = {"scales": (0.5, 1.0), "flip": True, "window": 16, "stride": 12}
    task = _of_folder(path, **views)
    batch = next(iter(task.eval_batches(Host())))
    shapes = [batch[f"image{i}"].shape[1:3] for i in range(2)]
    assert shapes == [(10, 16), (19, 32)]
    scores = _scores(task, weights)
    assert scores.detail.counts.sum() == plain.detail.counts.sum()
    assert (scores.detail.counts != plain.detail.counts).any()


def test_nothing_to_evaluate_on(task):
    with pytest.raises(NoExamplesError, match="no held-out pixel has a label"):
        task.evaluator().result()


def test_what_is_decayed():
    """All but position biases and layer norms; the heads' norms and all biases too."""
    task = Segmentation(_demo())
    groups = {name: task.parameter_group(name, (1,)).weight_decay for name in jax.eval_shape(
        task.init)[0]}  # fmt: skip
    left_out = {name for name, decay in groups.items() if not decay}
    assert "backbone.levels.0.blocks.0.attn.rpb" in left_out
    assert {"backbone.patch_embed.norm.scale", "backbone.norm0.bias"} <= left_out
    assert not any(".bn." in name or "qkv" in name or "fc1" in name for name in left_out)
    assert groups["decode_head.bottleneck.bn.scale"] == 1


def test_a_slow_or_frozen_backbone_and_heads_that_learn():
    config = _demo()
    slow = dataclasses.replace(config.model, layer_decay=0.5)
    frozen = dataclasses.replace(config.model, frozen=True)
    slow = Segmentation(dataclasses.replace(config, model=slow))
    frozen = Segmentation(dataclasses.replace(config, model=frozen, init="weights.safetensors"))
    for name in jax.eval_shape(slow.init)[0]:
        in_backbone = name.startswith(("backbone.patch_embed.", "backbone.levels."))
        assert (slow.parameter_group(name, (1,)).learning_rate < 1) == in_backbone, name
        assert frozen.parameter_group(name, (1,)).frozen == in_backbone, name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.model)
def test_presets_of_the_published_models(recipe):
    definition, preset = find_preset(f"{recipe.model}_ade20k")
    config = preset.make()
    assert definition.name == "segmentation"
    assert config.model.drop_path == natjax.segmentor_config(recipe.model).backbone.drop_path
    assert (config.steps, config.batch_size, config.augment.crop) == (160_000, 16, 512)
    assert f"mIoU {recipe.miou}" in preset.summary


def test_presets_are_listed():
    assert len(PRESETS) == 14
    assert isinstance(PRESETS["segment_demo"].make(), SegmentationConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"batch_size": 4, "accumulate": 4}, "parts have 2 images"),
        ({"data": LabelMapsConfig(window=10, stride=11)}, r"at most data\.window \(10\), got 11"),
        ({"data": LabelMapsConfig(scales=())}, r"data\.scales must be one number or more"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(segment_demo(), **changes)


def test_models_that_are_no_segmentor():
    model = ModelConfig(name="nat_micro")
    with pytest.raises(UserError, match="must be a segmentor, got 'nat_micro'"):
        _ = Segmentation(_demo(model=model)).model_config
