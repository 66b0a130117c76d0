import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from natjax.train.config import OptimizerConfig
from natjax.train.errors import UserError
from natjax.train.optimizer import decay_mask, make_optimizer, schedule

CONFIG = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_schedule(step, rate):
    assert float(schedule(CONFIG, 110)(step)) == pytest.approx(rate, abs=1e-6)


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
