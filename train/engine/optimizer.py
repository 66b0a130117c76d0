"""AdamW, its schedule, and how each parameter takes part."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natjax.train.config.settings import OptimizerConfig
from natjax.train.engine.task import ParameterGroup
from natjax.train.errors import UserError

Schedule = Callable[..., jax.Array]


def schedule(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None = None
) -> Schedule:
    """Return the learning rate as a function of the step, counted from 0.

    Written out, not joined from Optax's parts: those start to count anew after the warm-up, and
    round elsewhere.

    Args:
      config: The optimizer's settings.
      total_steps: Steps of the run.
      steps_per_epoch: For settings in epochs; None where there are none.

    Raises:
      UserError: warm-up and cooldown leave nothing of the run.
    """
    phases = _phases(config, total_steps, steps_per_epoch)
    start, peak, warmup = config.warmup_learning_rate, config.learning_rate, phases.warmup
    after = _SCHEDULES[config.schedule]

    def rate(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        main = after(config, phases, count)
        warms_up = count < warmup
        rising = start + (peak - start) * count / max(warmup, 1)
        if config.warmup_ratio is not None:
            ratio = config.warmup_ratio
            rising = main * (ratio + (1 - ratio) * count / max(warmup, 1))
        return jnp.where(warms_up, rising, main)

    return rate


@dataclasses.dataclass(frozen=True)
class _Phases:
    """Steps at which the warm-up ends, the decay begins and ends, and the rate falls."""

    warmup: int
    begin: int
    end: int
    falls: tuple[int, ...]

    def done(self, count: jax.Array) -> jax.Array:
        """The part of the decay that is over."""
        return jnp.clip((count - self.begin) / (self.end - self.begin), 0, 1)


def _cosine(config: OptimizerConfig, phases: _Phases, count: jax.Array) -> jax.Array:
    peak, final = config.learning_rate, config.final_learning_rate
    return final + (peak - final) * (1 + jnp.cos(jnp.pi * phases.done(count))) / 2


def _constant(config: OptimizerConfig, phases: _Phases, count: jax.Array) -> jax.Array:
    del phases, count
    return jnp.float32(config.learning_rate)


def _poly(config: OptimizerConfig, phases: _Phases, count: jax.Array) -> jax.Array:
    peak, final = config.learning_rate, config.final_learning_rate
    return final + (peak - final) * (1 - phases.done(count)) ** config.power


def _steps(config: OptimizerConfig, phases: _Phases, count: jax.Array) -> jax.Array:
    fallen = sum((count >= fall).astype(jnp.float32) for fall in phases.falls)
    return jnp.float32(config.learning_rate) * jnp.float32(config.step_factor) ** fallen


_SCHEDULES = {"cosine": _cosine, "constant": _constant, "poly": _poly, "steps": _steps}


def _phases(config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None) -> _Phases:
    def steps(epochs: float) -> int:
        if epochs and steps_per_epoch is None:
            raise ValueError("settings in epochs need steps_per_epoch")
        return round(epochs * (steps_per_epoch or 0))

    name, warmup = "warmup_steps", config.warmup_steps
    if config.warmup_epochs is not None:
        name, warmup = "warmup_epochs", steps(config.warmup_epochs)
    if not 0 <= warmup < total_steps:
        value = getattr(config, name)
        raise UserError(
            f"optimizer.{name} must be in [0, {total_steps}), the steps of this run, got {value}"
            + (f" ({warmup} steps)" if value != warmup else "")
        )
    end = total_steps - steps(config.cooldown_epochs)
    if not warmup < end <= total_steps:
        raise UserError(
            f"optimizer.cooldown_epochs must leave some of the {total_steps} steps after the"
            f" {warmup} of the warm-up, got {config.cooldown_epochs}"
        )
    begin = 0 if config.decay_from_start else warmup
    return _Phases(warmup, begin, end, tuple(steps(epoch) for epoch in config.step_epochs))


def make_optimizer(
    config: OptimizerConfig, rate: Schedule, groups: Mapping[str, ParameterGroup]
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, 2019), behind clipping where configured.

    Args:
      config: The optimizer's settings.
      rate: The schedule.
      groups: How each parameter that is trained takes part, by name.
    """
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps))
    for factor, chosen in _chosen(groups, "weight_decay"):
        if factor:
            parts.append(optax.add_decayed_weights(factor * config.weight_decay, chosen))
    for factor, chosen in _chosen(groups, "learning_rate"):
        if factor != 1:
            parts.append(optax.masked(optax.scale(factor), chosen))
    parts.append(optax.scale_by_learning_rate(rate))
    return _promoting(optax.chain(*parts))


def _chosen(
    groups: Mapping[str, ParameterGroup], field: str
) -> list[tuple[float, dict[str, bool]]]:
    """Each value of a field, and which parameters have it."""
    values = {name: getattr(group, field) for name, group in groups.items()}
    return [
        (factor, {name: value == factor for name, value in values.items()})
        for factor in sorted(set(values.values()))
    ]


def _promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    # Optax raises floats to integer powers, which jax_numpy_dtype_promotion=strict forbids.
    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)
