"""What a training step changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natjax.train.config.settings import TrainConfig
from natjax.train.engine.functional import FunctionalModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run. Random numbers are functions of (seed, step), so no key is among it.

    Leaves are arrays, or what stands for them in trees of this form: shapes, shardings.

    Attributes:
      step: Steps done, int32.
      params: Flat dict of parameters.
      opt: Optimizer state.
      ema: Exponential moving average of the parameters; empty where none is kept.
    """

    step: Any
    params: dict[str, Any]
    opt: optax.OptState
    ema: dict[str, Any]

    @property
    def averaged(self) -> dict[str, Any]:
        """The averaged parameters; the last ones where no average is kept."""
        return self.ema or self.params


def weights_item(config: TrainConfig, weights: str) -> str:
    """Return the item of a checkpoint that holds the asked weights.

    Args:
      config: The run.
      weights: ``"raw"``, or ``"ema"`` for the averaged ones; a run without them has only the first.
    """
    return "params" if weights == "raw" or config.ema_decay is None else "ema"


def init_state(
    model: FunctionalModel, optimizer: optax.GradientTransformation, *, ema: bool = True
) -> TrainState:
    """Return the state before the first step. To be jitted, with shardings for the outputs.

    Args:
      model: The network.
      optimizer: Its optimizer.
      ema: Whether to keep an average, which takes the memory of the parameters once more.
    """
    params = model.init()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
    )
