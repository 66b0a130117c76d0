"""The training step on a mesh that the user made, whatever the kind of its axes."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from natjax.train.config.settings import OptimizerConfig
from natjax.train.engine.compile import compile_training
from natjax.train.engine.step import set_up_step
from natjax.train.tasks.classification.config import AugmentConfig, EraseConfig, MixConfig
from natjax.train.tasks.classification.task import Classification


def two_steps(config, mesh):
    """Scalars of the second step, and what an evaluation measures after it."""
    compiled = compile_training(set_up_step(Classification(config), 8, 90.0), mesh)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 32, 32, 1), np.uint8)
    batch = {"image": images, "label": np.arange(16, dtype=np.int32) % 10}
    batch = {name: jax.device_put(rows, compiled.batch) for name, rows in batch.items()}
    state = compiled.init()
    for _ in range(2):
        state, scalars = compiled.train(state, batch)
    rows = {"mask": np.ones(16, bool), "id": np.arange(16, dtype=np.int32)}
    rows = {name: jax.device_put(values, compiled.batch) for name, values in rows.items()}
    measured = compiled.measure(state.params, state.statistics, batch | rows)
    return jax.tree.map(np.asarray, (scalars, measured))


@pytest.mark.oldest
def test_explicit_axes_change_nothing(config):
    config = dataclasses.replace(
        config,
        augment=AugmentConfig(
            mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0), erase=EraseConfig(prob=0.5)
        ),
        optimizer=OptimizerConfig(warmup_steps=1),
        accumulate=2,
    )
    auto = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    explicit = jax.make_mesh((4, 2), ("data", "fsdp"))
    assert set(explicit.axis_types) == {AxisType.Explicit}
    expected = two_steps(config, auto)
    with jax.set_mesh(explicit):
        found = two_steps(config, explicit)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
