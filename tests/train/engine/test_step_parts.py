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

from natjax.train.checkpoint.checkpointer import items_state, state_items
from natjax.train.config.settings import EraseConfig, MeshConfig, MixConfig, OptimizerConfig
from natjax.train.engine import trainer
from natjax.train.engine.compile import compile_task
from natjax.train.engine.evaluate import Evaluation, best_of
from natjax.train.engine.functional import FunctionalModel
from natjax.train.engine.sharding import batch_sharding, make_mesh, replicated
from natjax.train.engine.state import weights_item
from natjax.train.engine.step import (
    Network,
    Task,
    batch_gradient,
    cross_entropy,
    network_input,
    update_ema,
)
from natjax.train.tasks.classification import presets

SHAPE, CLASSES = (16, 8, 8, 3), 5
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, SHAPE, np.uint8)),
    "label": jnp.asarray(RNG.integers(0, CLASSES, SHAPE[0]), jnp.int32),
}


def linear_model():
    """Logits linear in the pixels, with enough weights to be split."""
    size = SHAPE[1] * SHAPE[2] * SHAPE[3]

    def init():
        return {"kernel": jax.random.normal(jax.random.key(0), (size, 8)) / 10}

    def apply(params, images, rngs=None):
        return (images.reshape(-1, size) @ params["kernel"])[:, :CLASSES]

    return FunctionalModel(init, apply)


def task(**changes):
    settings = {
        "network": Network(linear_model(), (0.5,) * 3, (0.25,) * 3),
        "optimizer": optax.sgd(0.1),
        "schedule": lambda step: jnp.float32(0.1),
        "label_smoothing": 0.1,
        "ema_decay": None,
        "seed": 3,
        "mix": MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
        "erase": EraseConfig(prob=0.5),
    }
    return Task(**settings | changes)


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
    this, params = task(), linear_model().init()
    return on_mesh(
        lambda step, batch: (
            network_input(this, step, batch),
            batch_gradient(this, params, step, batch),
        ),
        1,
    )


@pytest.mark.parametrize("parts", [2])
def test_eight_devices_learn_from_parts_what_one_learns_from_the_whole(one, parts):
    """A linear model's gradient shows every pixel, so mixing and erasing are the same too."""
    this, params = task(accumulate=parts), linear_model().init()
    eight = on_mesh(functools.partial(batch_gradient, this, params), 8)
    for step in range(6):
        expected, found = one(step)[1], eight(step)
        for left, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(left, right, atol=2e-6)


def test_the_partner_is_the_row_from_the_end(one):
    inputs, _ = one(0)
    np.testing.assert_array_equal(inputs["other_label"], BATCH["label"][::-1])


def test_steps_differ_in_what_they_draw(one):
    assert len({float(one(step)[0]["own"]) for step in range(6)}) > 3


def expected_loss(task, inputs, params):
    """As timm has it: cross-entropy with the blend of two smoothed targets."""
    targets = [
        optax.smooth_labels(jax.nn.one_hot(inputs[name], CLASSES), task.label_smoothing)
        for name in ("label", "other_label")
    ]
    own = inputs["own"]
    logits = task.network.model.apply(params, inputs["image"])
    return optax.softmax_cross_entropy(logits, own * targets[0] + (1 - own) * targets[1]).mean()


def test_the_loss_is_that_of_blended_smoothed_targets(one):
    this, params = task(), linear_model().init()
    inputs, ((loss, accuracy), grads) = one(2)
    expected, slope = jax.value_and_grad(lambda p: expected_loss(this, inputs, p))(params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(grads["kernel"], slope["kernel"], atol=1e-6)
    first = "label" if inputs["own"] >= 0.5 else "other_label"
    best = this.network.model.apply(params, inputs["image"]).argmax(axis=-1)
    assert float(accuracy) == pytest.approx(float((best == inputs[first]).mean()))


def test_without_mixing_the_loss_is_that_of_the_labels():
    plain, params = task(mix=MixConfig(), erase=EraseConfig()), linear_model().init()
    (loss, _), _ = batch_gradient(plain, params, jnp.int32(0), BATCH)
    logits = plain.network.logits(params, BATCH["image"])
    expected = cross_entropy(logits, BATCH["label"], 0.1).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def moved(program: str) -> set[str]:
    """Kinds of collectives in a program."""
    kinds = "all-gather|all-to-all|reduce-scatter|all-reduce|collective-permute"
    return set(re.findall(rf"= [^=]*? ({kinds})(?:-start)?\(", program))


def test_partners_come_by_one_exchange_of_uint8_and_nothing_is_gathered():
    compiled = compile_task(task(ema_decay=0.9, accumulate=2), mesh_of(8))
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
        compile_task(task(ema_decay=decay), mesh_of(1)).target for decay in (None, 0.9)
    )
    assert without.ema == {}
    assert jax.tree.leaves(with_one.ema)
    assert without.averaged is without.params


def test_without_warm_up_the_average_decays_from_the_start():
    ema, params = {"a": jnp.ones(2)}, {"a": jnp.zeros(2)}
    found = update_ema(ema, params, jnp.int32(0), 0.9998, warmup=False)
    np.testing.assert_allclose(found["a"], 0.9998)


def test_a_run_without_an_average_has_one_set_of_weights(config):
    state = compile_task(task(), mesh_of(1)).target
    assert set(state_items(state)) == {"params", "opt", "step"}
    assert items_state(state_items(state)) == state
    without = dataclasses.replace(config, ema_decay=None)
    assert [weights_item(without, kind) for kind in ("raw", "ema")] == ["params", "params"]
    assert [weights_item(config, kind) for kind in ("raw", "ema")] == ["params", "ema"]
    last, averaged = (Evaluation(images=1, loss=0.0, top1=x, top5=1.0) for x in (0.5, 0.25))
    assert best_of({"raw": last}) == last
    assert best_of({"raw": last, "ema": averaged}) == averaged


def test_a_run_hands_its_settings_to_its_step_and_its_data(config, monkeypatch):
    tasks = []

    def spy(task, *rest):
        tasks.append(task)
        return compile_task(task, *rest)

    monkeypatch.setattr(trainer, "compile_task", spy)
    plain = trainer.build_trainer(config)
    full = dataclasses.replace(
        config,
        augment=presets.emoji().augment,
        accumulate=2,
        ema_decay=0.5,
        ema_warmup=False,
        steps=100,
        optimizer=OptimizerConfig(schedule="constant", learning_rate=0.25, warmup_epochs=0.5),
    )
    whole = trainer.build_trainer(full)
    _, found = tasks
    assert (found.mix, found.erase) == (full.augment.mix, full.augment.erase)
    assert (found.accumulate, found.ema_decay, found.ema_warmup) == (2, 0.5, False)
    # 1437 images in batches of 16: half an epoch is 45 steps.
    assert [float(found.schedule(step)) for step in (0, 9, 20)] == pytest.approx([0, 0.05, 1 / 9])
    assert (plain.train_data[0]["image"] != whole.train_data[0]["image"]).any()
    np.testing.assert_array_equal(plain.train_data[0]["label"], whole.train_data[0]["label"])
