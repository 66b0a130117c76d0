"""Training that starts from weights of a file."""

import dataclasses

import jax
import numpy as np

from natjax.train import console
from natjax.train.functional import Params
from natjax.train.state import TrainState
from natjax.weights.load import fit_arrays, open_weights
from natjax.weights.structure import num_classes


def start_from(state: TrainState, weights: str, model: str) -> TrainState:
    """Return the state before the first step with parameters from a file, and tell what was taken.

    Args:
      state: As freshly drawn; what the file lacks for another number of classes stays.
      weights: As in `TrainConfig.init`.
      model: Name of the model.

    Raises:
      WeightsError: the weights cannot be found or read, or are of another model.
    """
    found = open_weights(weights, models=[model])
    shapes = {name: value.shape for name, value in state.params.items()}
    (classes,) = shapes["head.bias"]
    arrays, report = fit_arrays(
        found, shapes, drop_head=num_classes(found) != classes, resize_rpb=True
    )
    console.say(f"Starting from {report}")
    return dataclasses.replace(
        state, params=_replaced(state.params, arrays), ema=_replaced(state.ema, arrays)
    )


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
