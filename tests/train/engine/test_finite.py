import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.train.config.settings import RunConfig
from natjax.train.engine.finite import FiniteGuard, all_finite, skip_bad_updates
from natjax.train.engine.state import TrainState
from natjax.train.engine.step import StepSetup
from natjax.train.errors import TrainingError

STATE = TrainState(
    step=jnp.int32(4),
    params={"a": jnp.ones(3)},
    statistics={"n": jnp.ones(3)},
    opt=(jnp.int32(4),),
    ema={"a": jnp.zeros(3), "n": jnp.ones(3)},
)
TASK = object.__new__(StepSetup)  # nobody looks into it
GOOD, BAD = {"loss": 1.5, "grad_norm": 1.0}, {"loss": 1.5, "grad_norm": float("inf")}


def config(**settings) -> RunConfig:
    return RunConfig(**settings)


def toy_step(_, state, batch):
    """Adds the batch; its loss is the sum."""
    new = jax.tree.map(lambda leaf: leaf + batch["x"].astype(leaf.dtype), state)
    scalars = {"loss": batch["x"], "grad_norm": jnp.abs(batch["x"])}
    return dataclasses.replace(new, step=state.step + 1), scalars


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_step_changes_its_number_alone(value):
    step = jax.jit(functools.partial(skip_bad_updates(toy_step), TASK))
    after, scalars = step(STATE, {"x": jnp.float32(value)})
    assert int(after.step) == 5
    jax.tree.map(np.testing.assert_array_equal, after, dataclasses.replace(STATE, step=after.step))
    assert float(scalars["skipped"]) == 1


def test_a_good_step_is_as_it_was():
    batch = {"x": jnp.float32(2)}
    plain, scalars = toy_step(TASK, STATE, batch)
    after, seen = skip_bad_updates(toy_step)(TASK, STATE, batch)
    jax.tree.map(np.testing.assert_array_equal, after, plain)
    assert seen == scalars | {"skipped": 0}


def test_stopping_names_step_value_and_checkpoint():
    guard = FiniteGuard(config())
    with pytest.raises(TrainingError, match=r"grad_norm is inf at step 12; kept 8.*--on-nan skip"):
        guard.check([GOOD, BAD, GOOD], 11, lambda: "kept 8")


def test_skipping_stops_after_too_many_in_a_row_across_a_restart():
    settings = config(on_nan="skip", max_skipped=3)
    guard = FiniteGuard(settings)
    guard.check([BAD, BAD, BAD, GOOD, BAD, BAD], 1, str)
    guard = FiniteGuard(settings, guard.in_a_row)
    guard.check([BAD], 7, str)
    with pytest.raises(TrainingError, match=r"inf at step 8, and 3 updates in a row were left out"):
        guard.check([BAD], 8, str)


@pytest.mark.parametrize("part", ["params", "statistics", "opt", "ema"])
def test_a_state_that_is_not_finite_is_noticed(part):
    assert all_finite(STATE)
    bad = dataclasses.replace(STATE, **{part: {"a": jnp.array([0, jnp.nan])}})
    assert not all_finite(bad)
