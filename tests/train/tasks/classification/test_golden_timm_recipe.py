"""Losses, schedule, optimizer and averages against timm itself.

tests/golden/README.md says how timm's numbers were made. All of it is without chance; bounds are
those of float32, in which both compute but for the schedule, which timm has in Python's floats.
"""

import json

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_keys

from natjax.train.config.settings import OptimizerConfig
from natjax.train.engine.optimizer import make_optimizer, schedule
from natjax.train.engine.step import update_ema
from natjax.train.engine.task import ParameterGroup
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.metrics import cross_entropy
from natjax.train.tasks.classification.task import Classification

TIMM = goldens.load("timm_training")
LABELS = jnp.asarray(TIMM["batch/label"], jnp.int32)


def blended(logits, own):
    """The loss of a step whose batch is mixed, as `Classification` has it."""
    losses = [cross_entropy(logits, labels, 0.1) for labels in (LABELS, LABELS[::-1])]
    return (own * losses[0] + (1 - own) * losses[1]).mean()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_loss_of_mixed_batches_is_timms(name):
    target = TIMM[f"batch/{name}/target"]
    own = jnp.float32((target[0, 0] - 0.02) / 0.9)  # of 5 classes, smoothed by 0.1
    loss, grad = jax.value_and_grad(blended)(jnp.asarray(TIMM["batch/logits"]), own)
    assert float(loss) == pytest.approx(float(TIMM[f"batch/{name}/loss"]), rel=1e-6)
    np.testing.assert_allclose(grad, TIMM[f"batch/{name}/grad"], atol=1e-7)


def test_the_loss_of_smoothed_labels_is_timms():
    logits = jnp.asarray(TIMM["batch/logits"])
    loss, grad = jax.value_and_grad(lambda x: cross_entropy(x, LABELS, 0.1).mean())(logits)
    assert float(loss) == pytest.approx(float(TIMM["batch/smoothed/loss"]), rel=1e-6)
    np.testing.assert_allclose(grad, TIMM["batch/smoothed/grad"], atol=1e-7)


@pytest.mark.parametrize(("model", "warmup"), [("nat_tiny", 20), ("nat_isotropic_base", 50)])
def test_learning_rates_are_those_of_timms_scheduler(model, warmup):
    """At the start of each of 310 epochs of 1251 steps, in the first steps and the last."""
    config = presets.PRESETS[f"{model}_imagenet"].make().optimizer
    rate = schedule(config, 310 * 1251, 1251.0)
    found = jax.vmap(rate)(jnp.asarray(TIMM["rates/step"]))
    # float32 has the angle of the cosine to 2e-7: 1e-10 of the peak rate, which is 1e-3.
    np.testing.assert_allclose(found, TIMM[f"rates/{warmup}"], rtol=1e-6, atol=2e-10)


FAMILIES = ("nat", "dinat", "dinats", "isotropic", "vit_rpb")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_that_timm_decays_are_decayed(family):
    """Position biases are among them, whatever the models ask for."""
    theirs = set(json.loads(str(TIMM["decayed"]))[family])
    with np.load(goldens.COMMITTED / f"{family}.npz") as file:
        params = {
            key.split("/param/")[1]: file[key]
            for key in file.files
            if key.count("/") == 2 and "/param/" in key and file[key].dtype.kind == "f"
        }
    task = Classification(presets.PRESETS["nat_tiny_imagenet"].make())
    for name, value in params.items():
        ((ours, array),) = torch_keys.to_ours({name: value}).items()
        decay = task.parameter_group(ours, array.shape).weight_decay
        assert decay == float(name in theirs), name
    assert any(name.endswith("rpb") for name in theirs)


def test_updates_and_averages_are_those_of_timm():
    """Twelve updates: warm-up, cosine, cooldown; clipped or not; AdamW; the average after each."""
    config = OptimizerConfig(
        learning_rate=0.05,
        final_learning_rate=5e-4,
        warmup_learning_rate=1e-4,
        warmup_steps=4,
        decay_from_start=True,
        cooldown_epochs=2.0,
        weight_decay=0.05,
        decay_bias_tables=True,
    )
    names = ("head.weight", "head.bias", "attn.rpb", "gamma1")
    decayed = {"head.weight", "attn.rpb"}
    groups = {name: ParameterGroup(weight_decay=float(name in decayed)) for name in names}
    optimizer = make_optimizer(config, schedule(config, 12, steps_per_epoch=1.0), groups)
    params = {name: jnp.asarray(TIMM[f"updates/{name}/start"]) for name in names}
    average, state = params, optimizer.init(params)
    norms = []
    for step in range(12):
        grads = {name: jnp.asarray(TIMM[f"updates/{name}/grad"][step]) for name in names}
        norms.append(float(jnp.sqrt(sum((grad**2).sum() for grad in grads.values()))))
        updates, state = optimizer.update(grads, state, params)
        params = {name: params[name] + updates[name] for name in names}
        average = update_ema(average, params, jnp.int32(step), 0.9, warmup=False)
        for name in names:
            # timm's clipping divides by the norm plus 1e-6, which AdamW all but cancels.
            for found, what in ((params, "value"), (average, "average")):
                expected = TIMM[f"updates/{name}/{what}"][step]
                np.testing.assert_allclose(found[name], expected, atol=2e-6, err_msg=f"{step}")
    assert min(norms) < 5 < max(norms)
