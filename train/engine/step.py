"""One step of training, as a pure function: of any task."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from natjax.train.config.fitting import fitted_optimizer
from natjax.train.config.settings import RunConfig
from natjax.train.engine.network import Params, Statistics
from natjax.train.engine.optimizer import Schedule, make_optimizer, schedule
from natjax.train.engine.state import TrainState, init_state
from natjax.train.engine.task import Batch, ParameterGroup, Scalar, StepKeys, Task, Weight

Scalars = dict[str, Array]
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class StepSetup:
    """What a step needs besides state and batch; constant over a run.

    Attributes:
      task: Network and loss.
      groups: How each parameter is trained, by name.
      optimizer: Turns gradients of the parameters that are not frozen into updates.
      schedule: Learning rate of a step, for the metrics.
    """

    task: Task[Any]
    groups: dict[str, ParameterGroup]
    optimizer: optax.GradientTransformation
    schedule: Schedule

    @property
    def config(self) -> RunConfig:
        """The run."""
        return self.task.config

    def trained(self, params: Params) -> Params:
        """Return the parameters that are not frozen."""
        return {name: value for name, value in params.items() if not self.groups[name].frozen}

    def init(self) -> TrainState:
        """Return the state before the first step; to be jitted, with shardings for the outputs."""
        weights = self.task.init()
        opt = self.optimizer.init(self.trained(weights[0]))
        return init_state(weights, opt, ema=self.config.ema_decay is not None)


def set_up_step(
    task: Task[Any], total_steps: int, steps_per_epoch: float | None = None
) -> StepSetup:
    """Put a step together; no data is opened and no parameter computed.

    Args:
      task: The task.
      total_steps: Steps of the run.
      steps_per_epoch: For settings in epochs; None where there are none.

    Raises:
      UserError: the schedule does not fit the run.
    """
    config, _ = fitted_optimizer(task.config.optimizer, total_steps, steps_per_epoch)
    rate = schedule(config, total_steps, steps_per_epoch)
    params, _ = jax.eval_shape(task.init)
    groups = {name: task.parameter_group(name, leaf.shape) for name, leaf in params.items()}
    trained = {name: group for name, group in groups.items() if not group.frozen}
    return StepSetup(task, groups, make_optimizer(config, rate, trained), rate)


def train_step(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
    """Take one step.

    Args:
      setup: Constants.
      state: State before; its buffers are donated when jitted by `natjax.train.engine.compile`.
      batch: A training batch of the task.

    Returns:
      State after, and float32 scalars: ``loss``, ``grad_norm`` before clipping, ``learning_rate``,
      and those of the task's loss.
    """
    config = setup.config
    found = batch_gradient(setup, state.params, state.statistics, state.step, batch)
    trained = setup.trained(state.params)
    updates, opt = setup.optimizer.update(found.gradient, state.opt, trained)
    params = state.params | optax.apply_updates(trained, updates)
    scalars = found.scalars | {
        "grad_norm": optax.tree.norm(found.gradient),
        "learning_rate": setup.schedule(state.step),
    }
    ema = state.ema
    if config.ema_decay is not None:
        newest = params | found.statistics
        ema = update_ema(ema, newest, state.step, config.ema_decay, config.ema_warmup)
    new = TrainState(
        step=state.step + 1, params=params, statistics=found.statistics, opt=opt, ema=ema
    )
    return new, scalars


class BatchGradient(NamedTuple):
    """What a batch says.

    Attributes:
      gradient: Of the loss, for the parameters that are not frozen.
      statistics: The network's statistics after the batch.
      scalars: ``loss``, and what else the task logs.
    """

    gradient: Params
    statistics: Statistics
    scalars: Scalars


class _Sums(NamedTuple):
    """Sums over a part of a batch, or over several.

    Attributes:
      gradient: Of the sum of the loss.
      scalars: Pairs of sum and weight by name; ``loss`` is one of them.
    """

    gradient: Params
    scalars: dict[str, Pair]


def batch_gradient(
    setup: StepSetup, params: Params, statistics: Statistics, step: Int[Array, ""], batch: Batch
) -> BatchGradient:
    """Return the loss of a batch and its gradient: of all sums, divided by all weights.

    What a task draws from the keys of batch and rows is a function of the seed, the step and the
    row in the global batch, and so the same for any mesh, number of hosts and number of parts. What
    the network draws (stochastic depth, dropout) is drawn anew in each part, and each part starts
    with the statistics that the one before has left.

    Args:
      setup: Constants.
      params: Where the gradient is taken.
      statistics: The network's statistics before the batch.
      step: Steps before this one.
      batch: As for `train_step`.
    """
    keys = step_keys(setup.config.seed, step)
    rows, whole = setup.task.prepare(batch, keys)
    parts = setup.config.accumulate

    def sums_of(
        statistics: Statistics, part: Batch, index: Array | int
    ) -> tuple[Statistics, _Sums]:
        def loss_of(trained: Params) -> tuple[Array, Any]:
            rngs = _rngs(jax.random.fold_in(keys.network, index))
            found = setup.task.loss(params | trained, statistics, part | whole, rngs)
            scalars = {"loss": (found.sum, found.weight), **found.scalars}
            # The only part is divided before it is differentiated: one pass less over the gradient.
            pairs = {name: _pair(value, divide=parts == 1) for name, value in scalars.items()}
            return pairs["loss"][0], (found.statistics, pairs)

        derive = jax.value_and_grad(loss_of, has_aux=True)
        (_, (new, pairs)), gradient = derive(setup.trained(params))
        return new, _Sums(gradient, pairs)

    if parts == 1:
        statistics, (gradient, pairs) = sums_of(statistics, rows, 0)
        scalars = {name: mean for name, (mean, _) in pairs.items()}
    else:
        statistics, (gradient, pairs) = _add_up(sums_of, statistics, _split(rows, parts))
        scalars = {name: _divided(*pair) for name, pair in pairs.items()}
        gradient = jax.tree.map(lambda total: _divided(total, pairs["loss"][1]), gradient)
    return BatchGradient(gradient, statistics, scalars)


def step_keys(seed: int, step: Int[Array, ""]) -> StepKeys:
    """Return the random keys of a step.

    Args:
      seed: Of the run.
      step: Steps before this one.
    """
    return StepKeys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3))


def _rngs(key: Array) -> nnx.Rngs:
    # Numbers far from those of parts keep the streams apart.
    dropout, default = (jax.random.fold_in(key, 2**31 + index) for index in (0, 1))
    return nnx.Rngs(default, droppath=key, dropout=dropout)


def _pair(value: Scalar, *, divide: bool) -> Pair:
    """Sum and weight of what a task logs; or their quotient, with weight 1."""
    total, weight = value if isinstance(value, tuple) else (value, 1.0)
    if divide:
        total, weight = _divided(jnp.asarray(total), weight), 1.0
    weight = jax.lax.stop_gradient(jnp.asarray(weight, jnp.float32))
    return jnp.asarray(total, jnp.float32), weight


def _divided(total: Array, weight: Weight) -> Array:
    """The quotient; where the weight is 0, the sum, which then is 0 too."""
    if isinstance(weight, (int, float)):
        return total / weight if weight else total
    weight = jax.lax.stop_gradient(weight)
    return total / jnp.where(weight > 0, weight, 1).astype(total.dtype)


def _split(rows: Batch, parts: int) -> Batch:
    """Make part j of rows j, parts + j, 2 parts + j, ...: an axis of parts before the batch's.

    Every device holds consecutive rows, as many as `parts` divides, and so keeps all of its own:
    consecutive rows as parts would move nearly all examples.
    """
    return {
        name: values.reshape(-1, parts, *values.shape[1:]).swapaxes(0, 1)
        for name, values in rows.items()
    }


def _add_up(
    sums_of: Callable[[Statistics, Batch, Array], tuple[Statistics, _Sums]],
    statistics: Statistics,
    parts: Batch,
) -> tuple[Statistics, _Sums]:
    """Take the parts one after the other."""
    count = next(iter(parts.values())).shape[0]

    def add(carry: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        before, sums = carry
        after, found = sums_of(before, *part)
        return (after, jax.tree.map(jnp.add, sums, found)), None

    first = jax.tree.map(lambda values: values[0], parts)
    _, shapes = jax.eval_shape(sums_of, statistics, first, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carry, _ = jax.lax.scan(add, (statistics, zeros), (parts, jnp.arange(count)))
    return carry


def update_ema(
    ema: Params, newest: Params, step: Int[Array, ""], decay: float, warmup: bool = True
) -> Params:
    """Return ``d ema + (1 - d) newest``; of what is no float, such as a counter, the newest.

    Args:
      ema: Average before.
      newest: Newest parameters and statistics.
      step: Steps before this one.
      decay: The d of late steps.
      warmup: Whether ``d = min(decay, (1 + step) / (10 + step))``: the smaller decay of early steps
        lets the average forget the initial values.
    """
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + count) / (10 + count)) if warmup else decay

    def averaged(old: Array, new: Array) -> Array:
        return keep * old + (1 - keep) * new if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(averaged, ema, newest)
