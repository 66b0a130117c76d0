"""What a training step changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natjax.train.functional import FunctionalModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run. Random numbers are functions of (seed, step), so no key is among it.

    Leaves are arrays, or what stands for them in trees of this form: shapes, shardings.

    Attributes:
      step: Steps done, int32.
      params: Flat dict of parameters.
      opt: Optimizer state.
      ema: Exponential moving average of the parameters.
    """

    step: Any
    params: dict[str, Any]
    opt: optax.OptState
    ema: dict[str, Any]


def init_state(model: FunctionalModel, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step. To be jitted, with shardings for the outputs."""
    params = model.init()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params),
    )
