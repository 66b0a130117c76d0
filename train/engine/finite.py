"""What happens when the loss is not a finite number: stop, or leave such updates out.

Whether an update is left out is decided on the devices, from the state and the batch alone, so that
a resumed run leaves out the same ones.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from natjax.train.config.settings import RunConfig
from natjax.train.engine.state import TrainState
from natjax.train.engine.step import Scalars, StepSetup, train_step
from natjax.train.engine.task import Batch
from natjax.train.errors import TrainingError

Step = Callable[[StepSetup, TrainState, Batch], tuple[TrainState, Scalars]]
HostScalars = dict[str, Any]
_WATCHED = ("loss", "grad_norm")


def choose_step(config: RunConfig) -> Step:
    """Return the training step of a run."""
    return skip_bad_updates(train_step) if config.on_nan == "skip" else train_step


def skip_bad_updates(step: Step) -> Step:
    """Return a step that changes nothing but the step's number where the loss is not finite.

    Parameters, averages and the whole state of the optimizer (its schedule too) stay as they were.

    Args:
      step: As `natjax.train.engine.step.train_step`.

    Returns:
      Such a step; scalar ``skipped`` is 1 where the update was left out, else 0.
    """

    def guarded(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        new, scalars = step(setup, state, batch)
        good = jnp.stack([jnp.isfinite(scalars[name]) for name in _WATCHED]).all()
        kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state)
        skipped = 1 - good.astype(jnp.float32)
        return dataclasses.replace(kept, step=new.step), scalars | {"skipped": skipped}

    return guarded


class FiniteGuard:
    """Looks at the scalars of every step.

    Args of the constructor: the run, and how many updates in a row were left out last.
    """

    def __init__(self, config: RunConfig, in_a_row: int = 0):
        self._skips, self._most = config.on_nan == "skip", config.max_skipped
        self.in_a_row = in_a_row

    def check(
        self, scalars: Sequence[HostScalars], first_step: int, kept: Callable[[], str]
    ) -> None:
        """Look at some steps.

        Args:
          scalars: Of each step.
          first_step: Of the first of them.
          kept: Says what checkpoint there is to go back to.

        Raises:
          TrainingError: a step is not finite and none may be left out, or too many in a row were.
        """
        for step, values in enumerate(scalars, start=first_step):
            bad = [name for name in _WATCHED if not np.isfinite(values[name])]
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad and not self._skips:
                raise TrainingError(
                    f"{bad[0]} is {values[bad[0]]} at step {step}; {kept()}. The same command with"
                    " --on-nan skip goes on from there without such updates; or try a lower"
                    " --optimizer.learning-rate in another --run"
                )
            if self.in_a_row > self._most:
                raise TrainingError(
                    f"{bad[0]} is {values[bad[0]]} at step {step}, and {self._most} updates in a"
                    f" row were left out before it; {kept()}. Try a lower"
                    " --optimizer.learning-rate in another --run"
                )


def all_finite(state: TrainState) -> bool:
    """Whether every number of a state is finite."""
    leaves = jax.tree.leaves((state.params, state.statistics, state.ema, state.opt))
    return bool(_all_finite([leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]))


@jax.jit
def _all_finite(leaves: list[Array]) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
