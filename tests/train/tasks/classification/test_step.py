"""Mixing, erasing and accumulation inside the step: alike on any mesh, in any number of parts."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from natjax.train.cluster.processes import Host
from natjax.train.config.settings import MeshConfig, OptimizerConfig
from natjax.train.engine import trainer
from natjax.train.engine.compile import compile_training
from natjax.train.engine.evaluate import best_of
from natjax.train.engine.network import Network
from natjax.train.engine.sharding import batch_sharding, make_mesh, replicated
from natjax.train.engine.state import state_of, weights_items
from natjax.train.engine.step import StepSetup, batch_gradient, step_keys
from natjax.train.engine.task import ParameterGroup, Scores
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    EraseConfig,
    ImagesConfig,
    MixConfig,
)
from natjax.train.tasks.classification.datasets.registry import LabelledImages
from natjax.train.tasks.classification.metrics import cross_entropy
from natjax.train.tasks.classification.task import Classification

SHAPE, CLASSES = (16, 8, 8, 3), 5
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, SHAPE, np.uint8)),
    "label": jnp.asarray(RNG.integers(0, CLASSES, SHAPE[0]), jnp.int32),
}
SPEC = LabelledImages(
    name="noise",
    channels=3,
    class_names=tuple("abcde"),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    train_split="train",
    test_split="test",
    builder=lambda *_: None,
)


def linear_network():
    """Logits linear in the pixels, with enough weights to be split."""
    size = SHAPE[1] * SHAPE[2] * SHAPE[3]

    def init():
        return {"kernel": jax.random.normal(jax.random.key(0), (size, 8)) / 10}, {}

    def apply(params, statistics, images, rngs=None, train=False):
        return (images.reshape(-1, size) @ params["kernel"])[:, :CLASSES], statistics

    return Network(init, apply)


PARAMS = linear_network().init()[0]


def setup(mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0), erase=EraseConfig(prob=0.5), **changes):  # noqa: B008
    settings = {"ema_decay": None, "seed": 3, "batch_size": SHAPE[0]}
    config = ClassificationConfig(
        data=ImagesConfig(name="noise"),
        augment=AugmentConfig(mix=mix, erase=erase),
        **settings | changes,
    )
    task = Classification(config, SPEC, linear_network())
    groups = {"kernel": ParameterGroup()}
    return StepSetup(task, groups, optax.sgd(0.1), lambda step: jnp.float32(0.1))


def gradient(setup, params, step, batch):
    """Loss, accuracy and gradient of a batch."""
    found = batch_gradient(setup, params, {}, step, batch)
    return (found.scalars["loss"], found.scalars["accuracy"]), found.gradient


def network_input(setup, step, batch):
    """The images as the network sees them in a step, and what it learns from them."""
    rows, whole = setup.task.prepare(batch, step_keys(setup.config.seed, step))
    names = ("label", "other_label", "own")
    known = {name: x for name, x in (rows | whole).items() if name in names}
    return {"image": setup.task.inputs(rows | whole)} | known


def mesh_of(devices: int) -> Mesh:
    return make_mesh(MeshConfig(data=devices))


def on_mesh(function, devices):
    """Compile a function of step and batch for so many devices."""
    mesh = mesh_of(devices)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    batch = jax.device_put(BATCH, rows)
    jitted = jax.jit(function, in_shardings=(whole, rows), out_shardings=whole)
    compiled = jitted.lower(jnp.int32(0), batch).compile()

    @functools.cache
    def run(step):
        return jax.device_get(compiled(jax.device_put(jnp.int32(step), whole), batch))

    return run


@pytest.fixture(scope="module")
def one():
    """What the network sees of a step, and what it learns from it, on one device."""
    this, params = setup(), PARAMS
    return on_mesh(
        lambda step, batch: (
            network_input(this, step, batch),
            gradient(this, params, step, batch),
        ),
        1,
    )


@pytest.mark.parametrize("parts", [2])
def test_eight_devices_learn_from_parts_what_one_learns_from_the_whole(one, parts):
    """A linear model's gradient shows every pixel, so mixing and erasing are the same too."""
    this, params = setup(accumulate=parts), PARAMS
    eight = on_mesh(functools.partial(gradient, this, params), 8)
    for step in range(6):
        expected, found = one(step)[1], eight(step)
        for left, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(left, right, atol=2e-6)


def test_the_partner_is_the_row_from_the_end(one):
    inputs, _ = one(0)
    np.testing.assert_array_equal(inputs["other_label"], BATCH["label"][::-1])


def test_steps_differ_in_what_they_draw(one):
    assert len({float(one(step)[0]["own"]) for step in range(6)}) > 3


def expected_loss(setup, inputs, params):
    """As timm has it: cross-entropy with the blend of two smoothed targets."""
    targets = [
        optax.smooth_labels(
            jax.nn.one_hot(inputs[name], CLASSES), setup.task.config.label_smoothing
        )
        for name in ("label", "other_label")
    ]
    own = inputs["own"]
    logits, _ = setup.task.network.apply(params, {}, inputs["image"])
    return optax.softmax_cross_entropy(logits, own * targets[0] + (1 - own) * targets[1]).mean()


def test_the_loss_is_that_of_blended_smoothed_targets(one):
    this, params = setup(), PARAMS
    inputs, ((loss, accuracy), grads) = one(2)
    expected, slope = jax.value_and_grad(lambda p: expected_loss(this, inputs, p))(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(grads["kernel"], slope["kernel"], atol=1e-6)
    first = "label" if inputs["own"] >= 0.5 else "other_label"
    best = this.task.network.apply(params, {}, inputs["image"])[0].argmax(axis=-1)
    assert float(accuracy) == pytest.approx(float((best == inputs[first]).mean()))


def test_without_mixing_the_loss_is_that_of_the_labels():
    plain, params = setup(MixConfig(), EraseConfig()), PARAMS
    (loss, _), _ = gradient(plain, params, jnp.int32(0), BATCH)
    logits = plain.task.logits(params, {}, BATCH["image"])
    expected = cross_entropy(logits, BATCH["label"], 0.1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def moved(program: str) -> set[str]:
    """Kinds of collectives in a program."""
    kinds = "all-gather|all-to-all|reduce-scatter|all-reduce|collective-permute"
    return set(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", program))


def test_partners_come_by_one_exchange_of_uint8_and_nothing_is_gathered():
    compiled = compile_training(setup(ema_decay=0.9, accumulate=2), mesh_of(8))
    batch = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=compiled.batch)
        for name, rows in BATCH.items()
    }
    program = compiled.train.lower(compiled.target, batch).compile().as_text()
    assert moved(program) == {"collective-permute", "all-reduce"}
    exchanged = re.findall(r"= (\w+)\[([\d,]*)\]\S* collective-permute(?:-start)?\(", program)
    assert ("u8", "2,8,8,3") in exchanged
    assert {kind for kind, _ in exchanged} <= {"u8", "s32"}


def test_no_average_takes_no_memory():
    without, with_one = (
        compile_training(setup(ema_decay=decay), mesh_of(1)).target for decay in (None, 0.9)
    )
    assert without.ema == {}
    assert jax.tree.leaves(with_one.ema)
    assert without.averaged()[0] is without.params


def test_a_run_without_an_average_has_one_set_of_weights():
    state = compile_training(setup(), mesh_of(1)).target
    assert set(state.items()) == {"params", "opt", "step"}
    assert state_of(state.items()) == state
    assert set(state.weights()) == {"raw"}
    assert set(weights_items("raw", PARAMS, {})) == {"params"}
    assert set(weights_items("ema", PARAMS, {})) == {"ema"}
    last, averaged = (Scores(values={"top1": x}, primary="top1") for x in (0.5, 0.25))
    assert best_of({"raw": last}) == last
    assert best_of({"raw": last, "ema": averaged}) == averaged


def test_a_run_hands_its_settings_to_its_step_and_its_data(config, monkeypatch):
    setups = []

    def spy(setup, *rest):
        setups.append(setup)
        return compile_training(setup, *rest)

    monkeypatch.setattr(trainer, "compile_training", spy)
    full = dataclasses.replace(
        config,
        augment=presets.emoji().augment,
        steps=100,
        optimizer=OptimizerConfig(schedule="constant", learning_rate=0.25, warmup_epochs=0.5),
    )
    tasks = [Classification(config), Classification(full)]
    for task in tasks:
        trainer.build_trainer(task)
    # 1437 images in batches of 16: half an epoch is 45 steps.
    rates = [float(setups[1].schedule(step)) for step in (0, 9, 20)]
    assert rates == pytest.approx([0, 0.05, 1 / 9])
    plain, whole = (next(task.train_batches(0, Host())) for task in tasks)
    assert (plain["image"] != whole["image"]).any()
    np.testing.assert_array_equal(plain["label"], whole["label"])
