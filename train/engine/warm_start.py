"""Training that starts from weights of a file."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from natjax.train.checkpoint.checkpointer import list_steps
from natjax.train.engine.functional import Params
from natjax.train.engine.state import TrainState
from natjax.train.engine.trainer import Trainer
from natjax.weights.load import fit_arrays, open_weights
from natjax.weights.structure import num_classes


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Parameters that take the place of drawn ones.

    Attributes:
      arrays: By name; without the classifier where the number of classes differs.
      report: What was taken, in words.
    """

    arrays: dict[str, np.ndarray]
    report: str


def read_initial(trainer: Trainer, checkpoints: Path) -> InitialWeights | None:
    """Return what the configuration says to start from; None where it says nothing.

    None too where the run has a checkpoint already, from which it goes on.

    Args:
      trainer: The run.
      checkpoints: Its folder of checkpoints, whether it exists or not.

    Raises:
      WeightsError: the weights cannot be found or read, or are of another model.
    """
    config = trainer.config
    if config.init is None or list_steps(checkpoints):
        return None
    found = open_weights(config.init, models=[config.model.name])
    shapes = {name: leaf.shape for name, leaf in trainer.compiled.target.params.items()}
    (classes,) = shapes["head.bias"]
    arrays, report = fit_arrays(
        found, shapes, drop_head=num_classes(found) != classes, resize_rpb=True
    )
    return InitialWeights(arrays, str(report))


def start_from(state: TrainState, initial: InitialWeights) -> TrainState:
    """Return the state before the first step with other parameters.

    Args:
      state: As freshly drawn.
      initial: What to take.
    """
    arrays = initial.arrays
    ema = _replaced(state.ema, arrays) if state.ema else {}
    return dataclasses.replace(state, params=_replaced(state.params, arrays), ema=ema)


def _replaced(params: Params, arrays: dict[str, np.ndarray]) -> Params:
    """The parameters with those of a file, sharded as before; every host has read the whole file.

    Called for the parameters and for their average, which must not share memory: a step donates
    both.
    """

    def placed(old: jax.Array, array: np.ndarray) -> jax.Array:
        value = array.astype(old.dtype)
        return jax.make_array_from_callback(
            value.shape, old.sharding, lambda part: np.array(value[part])
        )

    return params | {name: placed(params[name], array) for name, array in arrays.items()}
