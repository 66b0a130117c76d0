import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from natjax.train.config.settings import OptimizerConfig
from natjax.train.engine.optimizer import decay_mask, make_optimizer, schedule
from natjax.train.errors import UserError

CONFIG = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_schedule(step, rate):
    assert float(schedule(CONFIG, 110)(step)) == pytest.approx(rate, abs=1e-6)


def test_warm_up_and_cooldown_in_epochs():
    config = dataclasses.replace(CONFIG, warmup_epochs=2.0, cooldown_epochs=1.0)
    rate = schedule(config, 100, steps_per_epoch=10.0)
    found = [float(rate(step)) for step in (0, 10, 20, 55, 90, 99)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1, 0.1], abs=1e-6)


def test_a_constant_rate_follows_the_warm_up():
    config = dataclasses.replace(CONFIG, schedule="constant", warmup_learning_rate=0.2)
    rate = schedule(config, 100)
    assert [float(rate(step)) for step in (0, 5, 10, 99)] == pytest.approx([0.2, 0.6, 1, 1])


def test_a_cosine_from_the_start_is_below_the_peak_when_the_warm_up_ends():
    rate = schedule(dataclasses.replace(CONFIG, cosine_from_start=True), 40)
    assert float(rate(9)) == pytest.approx(0.9)
    assert float(rate(10)) == pytest.approx(0.1 + 0.45 * (1 + 2**-0.5), rel=1e-5)


def test_phases_must_fit_the_run():
    config = dataclasses.replace(CONFIG, warmup_epochs=2.0)
    with pytest.raises(UserError, match=r"warmup_epochs must be in \[0, 20\).* 2.0 \(20 steps\)"):
        schedule(config, 20, steps_per_epoch=10.0)
    config = dataclasses.replace(CONFIG, cooldown_epochs=9.0)
    with pytest.raises(UserError, match=r"leave some of the 100 steps after the 10 .* got 9.0"):
        schedule(config, 100, steps_per_epoch=10.0)
    with pytest.raises(ValueError, match="need steps_per_epoch"):
        schedule(config, 100)


def test_without_warm_up_the_first_step_has_the_peak():
    config = dataclasses.replace(CONFIG, warmup_steps=0)
    assert float(schedule(config, 100)(0)) == 1.0


@pytest.mark.parametrize("steps", [5, 10])
def test_warm_up_must_fit_the_run(steps):
    with pytest.raises(UserError, match=rf"warmup_steps must be in \[0, {steps}\).* got 10"):
        schedule(CONFIG, steps)


PARAMS = {
    "head.kernel": jnp.ones((2, 2)),
    "head.bias": jnp.ones((2,)),
    "levels.0.blocks.0.attn.rpb": jnp.ones((2, 3, 3)),
    "gamma": jnp.ones((2,)),
}


@pytest.mark.parametrize("tables", [False, True])
def test_matrices_are_decayed_and_vectors_are_not(tables):
    decayed = {name for name, yes in decay_mask(PARAMS, tables).items() if yes}
    assert decayed == {"head.kernel"} | ({"levels.0.blocks.0.attn.rpb"} if tables else set())


def test_without_gradient_only_decay_moves_parameters():
    config = dataclasses.replace(CONFIG, warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 100)
    zeros = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head.kernel"], -0.5)
    for name in set(PARAMS) - {"head.kernel"}:
        np.testing.assert_array_equal(updates[name], 0)


def test_clipping_is_optional():
    config = dataclasses.replace(CONFIG, clip_norm=None)
    with_clip, without = make_optimizer(CONFIG, 100), make_optimizer(config, 100)
    assert len(with_clip.init(PARAMS)) == 2
    assert len(without.init(PARAMS)) == 3
