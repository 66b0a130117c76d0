"""What a training step changes, and the items of a checkpoint that hold it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Parameters and statistics: arrays, or what stands for them.
Weights = tuple[dict[str, Any], dict[str, Any]]
# The sets of weights that a run has: those of the last step, and their average.
KINDS = ("raw", "ema")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """State of a run. Random numbers are functions of (seed, step), so no key is among it.

    Leaves are arrays, or what stands for them in trees of this form: shapes, shardings.

    Attributes:
      step: Steps done, int32.
      params: Flat dict of parameters.
      statistics: Flat dict of the network's other variables; most networks have none.
      opt: Optimizer state.
      ema: Exponential moving average of parameters and statistics; empty where none is kept.
    """

    step: Any
    params: dict[str, Any]
    statistics: dict[str, Any]
    opt: optax.OptState
    ema: dict[str, Any]

    def weights(self) -> dict[str, Weights]:
        """Return parameters and statistics by ``"raw"`` and, where there is one, ``"ema"``."""
        found = {"raw": (self.params, self.statistics)}
        return found | ({"ema": self._split(self.ema)} if self.ema else {})

    def averaged(self) -> Weights:
        """Return the averaged parameters and statistics; the last where no average is kept."""
        return self._split(self.ema) if self.ema else (self.params, self.statistics)

    def _split(self, values: dict[str, Any]) -> Weights:
        return (
            {name: values[name] for name in self.params},
            {name: values[name] for name in self.statistics},
        )

    def items(self) -> dict[str, Any]:
        """Return the items of a checkpoint by name; of a tree of shapes, what to restore into."""
        items = {"params": self.params, "opt": self.opt, "step": {"step": self.step}}
        optional = {"statistics": self.statistics, "ema": self.ema}
        return items | {name: item for name, item in optional.items() if item}


def state_of(items: Mapping[str, Any]) -> TrainState:
    """Undo `TrainState.items`."""
    return TrainState(
        step=items["step"]["step"],
        params=items["params"],
        statistics=items.get("statistics", {}),
        opt=items["opt"],
        ema=items.get("ema", {}),
    )


def weights_items(kind: str, params: dict[str, Any], statistics: dict[str, Any]) -> dict[str, Any]:
    """Return the items of a checkpoint that hold a set of weights, as what to restore into.

    Args:
      kind: ``"raw"`` or ``"ema"``.
      params: Shapes of the parameters.
      statistics: Shapes of the statistics.
    """
    if kind == "ema":
        return {"ema": params | statistics}
    return {"params": params} | ({"statistics": statistics} if statistics else {})


def weights_of(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters and statistics, in one dict, of the items that `weights_items` named."""
    return {name: value for item in items.values() for name, value in item.items()}


def init_state(weights: Weights, opt: optax.OptState, *, ema: bool = True) -> TrainState:
    """Return the state before the first step.

    Args:
      weights: Parameters and statistics as drawn.
      opt: State of the optimizer.
      ema: Whether to keep an average, which takes the memory of the parameters once more.
    """
    params, statistics = weights
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        opt=opt,
        ema=jax.tree.map(jnp.copy, params | statistics) if ema else {},
    )
