import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from natjax.train.config.settings import OptimizerConfig
from natjax.train.engine.optimizer import make_optimizer, schedule
from natjax.train.engine.task import ParameterGroup
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
    rate = schedule(dataclasses.replace(CONFIG, decay_from_start=True), 40)
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


DECAYED = {"head.kernel"}
GROUPS = {name: ParameterGroup(weight_decay=float(name in DECAYED)) for name in PARAMS}


def make(config, groups=None):
    return make_optimizer(config, schedule(config, 100), groups or GROUPS)


def test_without_gradient_only_decay_moves_parameters():
    config = dataclasses.replace(CONFIG, warmup_steps=0, weight_decay=0.5)
    optimizer = make(config)
    zeros = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head.kernel"], -0.5)
    for name in set(PARAMS) - {"head.kernel"}:
        np.testing.assert_array_equal(updates[name], 0)


def test_clipping_is_optional():
    config = dataclasses.replace(CONFIG, clip_norm=None)
    with_clip, without = make(CONFIG), make(config)
    assert len(with_clip.init(PARAMS)) == 1 + len(without.init(PARAMS))
    gradient = {name: 100 * value for name, value in PARAMS.items()}
    for optimizer in (with_clip, without):
        state = optimizer.init(PARAMS)
        _, state = optimizer.update(gradient, state, PARAMS)
        (moments,) = [x for x in state if hasattr(x, "mu")]
        expected = CONFIG.clip_norm if optimizer is with_clip else 100 * 26**0.5
        assert float(optax.tree.norm(moments.mu)) == pytest.approx(0.1 * expected, rel=1e-5)


def test_groups_scale_the_rate_and_the_decay():
    config = dataclasses.replace(
        CONFIG, schedule="constant", warmup_steps=0, clip_norm=None, weight_decay=0.5
    )
    names = ("slow", "fast", "half")
    params = {name: jnp.full(3, 2.0) for name in names}
    groups = {
        "slow": ParameterGroup(learning_rate=0.1, weight_decay=0.0),
        "fast": ParameterGroup(weight_decay=0.0),
        "half": ParameterGroup(weight_decay=0.5),
    }
    gradient = {"slow": jnp.ones(3), "fast": jnp.ones(3), "half": jnp.zeros(3)}
    optimizer = make(config, groups)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    found = {name: float(updates[name][0]) for name in names}
    # Adam's first step is the sign of the gradient; decay is half of 0.5 of a parameter of 2.
    assert found == pytest.approx({"slow": -0.1, "fast": -1.0, "half": -0.5}, rel=1e-5)


def test_poly_falls_to_the_end_by_its_power():
    config = dataclasses.replace(CONFIG, schedule="poly", final_learning_rate=0.0, warmup_steps=0)
    rates = [float(schedule(config, 100)(step)) for step in (0, 25, 50, 100)]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.0])
    squared = schedule(dataclasses.replace(config, power=2.0), 100)
    assert float(squared(50)) == pytest.approx(0.25)


def test_steps_fall_after_epochs():
    config = dataclasses.replace(CONFIG, schedule="steps", warmup_steps=0, step_epochs=(27.0, 33.0))
    rate = schedule(config, 360, steps_per_epoch=10.0)
    found = [float(rate(step)) for step in (0, 269, 270, 329, 330, 359)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-5)


def test_a_warm_up_by_a_ratio_multiplies_the_schedule():
    """As mmcv has it, with poly counted from the start: lr (1 - (1 - t / T)(1 - ratio))."""
    config = dataclasses.replace(
        CONFIG,
        schedule="poly",
        final_learning_rate=0.0,
        warmup_ratio=1e-6,
        warmup_steps=1500,
        decay_from_start=True,
    )
    rate = schedule(config, 160_000)
    for step in (0, 750, 1499, 1500, 80_000):
        regular = 1 - step / 160_000
        factor = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0
        assert float(rate(step)) == pytest.approx(regular * factor, rel=1e-4)
