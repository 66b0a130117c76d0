"""Detection as the engine sees it: inputs, loss, random keys, decay, presets, settings."""

import dataclasses

import detection
import jax
import jax.numpy as jnp
import numpy as np
import pico
import pytest
from flax import nnx

import natjax
from natjax.dense.detection.targets import Truth
from natjax.train.config.settings import MeshConfig, ModelConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.sharding import make_mesh, put_batch
from natjax.train.engine.step import set_up_step, step_keys, train_step
from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import AugmentConfig, ObjectsConfig
from natjax.train.tasks.detection.presets import PRESETS, detect_demo
from natjax.train.tasks.detection.recipes import RECIPES
from natjax.train.tasks.detection.task import Detection, unpack_masks
from natjax.train.tasks.registry import find_preset

CLASSES = ("a", "b", "c")


def make_task(**changes):
    settings = {"model": ModelConfig(name=pico.DETECTOR, drop_path=0.1), "batch_size": 8}
    return Detection(dataclasses.replace(detect_demo(), **settings | changes), CLASSES)


@pytest.fixture(scope="module")
def task():
    return make_task()


@pytest.fixture(scope="module")
def weights(task):
    return jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 0})()


def test_inputs_are_normalised_and_0_where_they_fill_up(task):
    pixels = np.full((1, 3, 4, 3), 255, np.uint8)
    seen = task.inputs(jnp.asarray(pixels), jnp.array([[2, 3]], jnp.int32))
    expected = (255 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(seen[0, :2, :3], np.broadcast_to(expected, (2, 3, 3)), rtol=1e-5)
    assert not seen[0, 2:].any()
    assert not seen[0, :, 3:].any()


@pytest.mark.parametrize("width", [1, 8, 13])
def test_masks_of_bits(width):
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, 5, width)).astype(bool)
    bits = jnp.asarray(np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(unpack_masks(bits, width), masks)


def test_keys_are_a_function_of_seed_step_and_row(task):
    batch = jax.tree.map(jnp.asarray, detection.training_batch())
    keys = [
        jax.random.key_data(task.prepare(batch, step_keys(seed, jnp.int32(step)))[0]["keys"])
        for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert len({tuple(key) for some in keys[1:] for key in some.tolist()}) == 3 * 8
    fewer = jax.tree.map(lambda x: x[:5], batch)
    rows, whole = task.prepare(fewer, step_keys(0, jnp.int32(0)))
    np.testing.assert_array_equal(jax.random.key_data(rows["keys"]), keys[0][:5])
    assert not whole


def test_loss_is_that_of_the_model(task, weights):
    batch = jax.tree.map(jnp.asarray, detection.training_batch())
    rows, _ = task.prepare(batch, step_keys(0, jnp.int32(3)))

    @jax.jit  # both at once, which compiles once
    def both(params, statistics):
        model = nnx.eval_shape(task.build)
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            variable.set_value((params | statistics)[".".join(map(str, path))])
        masks = jnp.asarray(np.unpackbits(np.asarray(batch["masks"]), axis=-1)).astype(bool)
        truth = Truth(batch["boxes"], batch["label"], batch["valid"], masks)
        images = task.inputs(batch["image"], batch["size"])
        sizes = batch["size"]
        expected = model.loss(images, sizes, truth, keys=rows["keys"], rngs=nnx.Rngs(0))
        return task.loss(params, statistics, rows, nnx.Rngs(0)), expected

    loss, (total, parts) = both(*weights)
    assert float(loss.sum) == pytest.approx(8 * float(total), rel=1e-5)
    assert loss.weight == 8
    assert set(loss.scalars) == set(parts)
    names = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert names | {"accuracy", "positive", "rpn_positive"} == set(parts)
    assert loss.sum.dtype == jnp.float32


@pytest.fixture(scope="module")
def steps():
    """Two steps on one device, and on eight of which two share parameters."""
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests compile

    def run(mesh, **changes):
        task = make_task(mesh=mesh, **changes)
        devices = make_mesh(mesh)
        compiled = compile_training(set_up_step(task, 100, 10.0), devices, train_step)
        state, scalars = compiled.init(), []
        for seed in range(2):
            batch = put_batch(detection.training_batch(seed=seed), compiled.batch)
            state, found = compiled.train(state, batch)
            scalars.append(jax.device_get(found))
        return jax.device_get(state.params), scalars

    return run


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one(steps):
    alone, spread = steps(MeshConfig()), steps(MeshConfig(data=4, fsdp=2))
    for one, many in zip(alone[1], spread[1], strict=True):
        assert one.keys() == many.keys()
        for name, value in one.items():
            np.testing.assert_allclose(many[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_parts_of_a_batch_count_by_their_images(steps):
    whole = ModelConfig(name=pico.DETECTOR)  # stochastic depth is drawn for each part
    alone = steps(MeshConfig(), model=whole)[1][0]
    parts = steps(MeshConfig(), model=whole, accumulate=2)[1][0]
    # Each part divides by its own boxes, so the mean of the parts is near that of the whole.
    assert parts["loss"] == pytest.approx(alone["loss"], rel=0.1)
    assert parts["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)


def test_what_is_decayed(task):
    """All but position biases and layer norms; all biases too."""
    shapes = jax.eval_shape(task.init)[0]
    groups = {name: task.parameter_group(name, (1,)).weight_decay for name in shapes}
    left_out = {name for name, decay in groups.items() if not decay}
    assert "backbone.levels.0.blocks.0.attn.rpb" in left_out
    assert {"backbone.patch_embed.norm.scale", "backbone.norm0.bias"} <= left_out
    assert groups["rpn_head.rpn_cls.bias"] == groups["roi_head.bbox_head.fc_cls.kernel"] == 1
    cascade = Detection(find_preset("cascade_mask_rcnn_nat_mini_coco")[1].make(), CLASSES)
    norm = "roi_head.bbox_head.0.shared_convs.0.bn.scale"
    assert cascade.parameter_group(norm, (1,)).weight_decay == 1


def test_a_slow_or_frozen_backbone_and_heads_that_learn(task):
    model = task.config.model
    slow = make_task(model=dataclasses.replace(model, layer_decay=0.5))
    frozen = make_task(model=dataclasses.replace(model, frozen=True), init="weights.safetensors")
    for name in jax.eval_shape(slow.init)[0]:
        in_backbone = name.startswith(("backbone.patch_embed.", "backbone.levels."))
        assert (slow.parameter_group(name, (1,)).learning_rate < 1) == in_backbone, name
        assert frozen.parameter_group(name, (1,)).frozen == in_backbone, name


def test_half_precision_keeps_the_loss_in_float32():
    task = make_task(model=ModelConfig(name=pico.DETECTOR, dtype="bfloat16", remat=True))
    assert task.recomputes
    batch = jax.tree.map(jnp.asarray, detection.training_batch())
    rows, _ = task.prepare(batch, step_keys(0, jnp.int32(0)))
    loss = jax.eval_shape(lambda *a: task.loss(*a, nnx.Rngs(0)), *jax.eval_shape(task.init), rows)
    kinds = {leaf.dtype for pair in loss.scalars.values() for leaf in pair}
    assert {loss.sum.dtype, *kinds} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.model)
def test_presets_of_the_published_models(recipe):
    definition, preset = find_preset(f"{recipe.model}_coco")
    config = preset.make()
    assert definition.name == "detection"
    assert config.model.drop_path == natjax.detector_config(recipe.model).backbone.drop_path
    assert (config.epochs, config.batch_size) == (36, 16)
    assert (config.optimizer.step_epochs, config.ema_decay) == ((27, 33), None)
    large = recipe.model.endswith("large")
    assert config.init == ("imagenet22k" if large else "imagenet1k")
    assert f"box AP {recipe.box_ap}" in preset.summary
    published = natjax.weights.PUBLISHED
    found = [x.accuracy for x in published if x.whole == recipe.model]
    assert found == [f"{recipe.box_ap} / {recipe.mask_ap} box / mask AP"]


def test_every_published_detector_has_a_preset():
    models = {name.removesuffix("_coco") for name in PRESETS} - {"detect_demo"}
    assert models == set(natjax.list_models(kind="detector")) - {"mask_rcnn_micro", pico.DETECTOR}


def test_the_schedule_falls_at_epochs_27_and_33():
    config = find_preset("mask_rcnn_nat_tiny_coco")[1].make()
    task = Detection(dataclasses.replace(config, init=None), CLASSES)
    rate = set_up_step(task, 36 * 7329, 7329.0).schedule
    at = {step: float(rate(step)) for step in (0, 250, 500, 27 * 7329 - 1, 27 * 7329, 33 * 7329)}
    expected = [1e-7, 1e-4 * (1e-3 + 0.999 / 2), 1e-4, 1e-4, 1e-5, 1e-6]
    np.testing.assert_allclose(list(at.values()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ObjectsConfig(objects=0)}, r"data\.objects must be at least 1, got 0"),
        ({"augment": AugmentConfig(sides=())}, r"augment\.sides must be one length or more"),
        ({"augment": AugmentConfig(crop_range=(5, 4))}, "crop_range must be 1 <= low <= high"),
        ({"augment": AugmentConfig(hflip=1.5)}, r"augment\.hflip must be in \[0, 1\], got 1\.5"),
        ({"model": ModelConfig(drop_path=1.0)}, r"model\.drop_path must be in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(detect_demo(), **changes)


def test_models_that_are_no_detector():
    with pytest.raises(UserError, match="must be a detector, got 'nat_micro'"):
        _ = make_task(model=ModelConfig(name="nat_micro")).model_config
