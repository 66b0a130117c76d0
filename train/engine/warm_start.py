"""Training that starts from weights of a file."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from natjax.train.engine.network import Params
from natjax.train.engine.state import TrainState
from natjax.train.engine.task import InitialWeights
from natjax.train.engine.trainer import Trainer


def read_initial(trainer: Trainer) -> InitialWeights | None:
    """Return what the configuration says to start from; None where it says nothing.

    Args:
      trainer: The run.

    Raises:
      UserError: the task starts from scratch only.
      WeightsError: the weights cannot be found or read, or are of another model.
    """
    source, target = trainer.config.init, trainer.compiled.target
    if source is None:
        return None
    shapes = {name: leaf.shape for name, leaf in (target.params | target.statistics).items()}
    return trainer.task.initial_weights(source, shapes)


def start_from(state: TrainState, initial: InitialWeights) -> TrainState:
    """Return the state before the first step with other weights.

    Args:
      state: As freshly drawn.
      initial: What to take.
    """
    found = {
        name: _replaced(getattr(state, name), initial.arrays)
        for name in ("params", "statistics", "ema")
    }
    return dataclasses.replace(state, **found)


def _replaced(values: Params, arrays: Mapping[str, np.ndarray]) -> Params:
    """The values with those of a file, sharded as before; every host has read the whole file.

    Called for the weights and for their average, which must not share memory: a step donates both.
    """

    def placed(old: jax.Array, array: np.ndarray) -> jax.Array:
        value = array.astype(old.dtype)
        return jax.make_array_from_callback(
            value.shape, old.sharding, lambda part: np.array(value[part])
        )

    return values | {name: placed(values[name], arrays[name]) for name in values if name in arrays}
