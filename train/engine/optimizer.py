"""AdamW, its schedule, and what it decays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natjax.train.config.settings import OptimizerConfig
from natjax.train.errors import UserError


def schedule(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None = None
) -> Callable[..., jax.Array]:
    """Return the learning rate as a function of the step, counted from 0.

    Linear to the peak in the warm-up, then half a cosine down to `final_learning_rate` where the
    cooldown begins, and constant from there; or the peak throughout.

    Args:
      config: The optimizer's settings.
      total_steps: Steps of the run.
      steps_per_epoch: For settings in epochs; None where there are none.

    Raises:
      UserError: warm-up and cooldown leave nothing of the run.
    """
    warmup, end = _phases(config, total_steps, steps_per_epoch)
    start, peak, final = (
        config.warmup_learning_rate,
        config.learning_rate,
        config.final_learning_rate,
    )
    begin = 0 if config.cosine_from_start else warmup

    def rate(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        after = jnp.float32(peak)
        if config.schedule == "cosine":
            done = jnp.clip((count - begin) / (end - begin), 0, 1)
            after = final + (peak - final) * (1 + jnp.cos(jnp.pi * done)) / 2
        return jnp.where(count < warmup, start + (peak - start) * count / max(warmup, 1), after)

    return rate


def _phases(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None
) -> tuple[int, int]:
    """Where the warm-up and the cosine end, in steps."""

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
    return warmup, end


def decay_mask(params: dict[str, jax.Array], decay_bias_tables: bool = False) -> dict[str, bool]:
    """Return which parameters are decayed: matrices and kernels, never biases, norms and scales.

    Args:
      params: Flat dict of parameters.
      decay_bias_tables: Whether the relative position biases (``...rpb``) are too.
    """
    return {
        name: value.ndim > 1 and (decay_bias_tables or not name.endswith("rpb"))
        for name, value in params.items()
    }


def make_optimizer(
    config: OptimizerConfig, total_steps: int, steps_per_epoch: float | None = None
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, 2019), behind clipping where configured.

    Args:
      config: The optimizer's settings.
      total_steps: Steps of the run.
      steps_per_epoch: As for `schedule`.

    Raises:
      UserError: the schedule does not fit the run.
    """
    adamw = optax.adamw(
        schedule(config, total_steps, steps_per_epoch),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, config.decay_bias_tables),
    )
    if config.clip_norm is None:
        return _promoting(adamw)
    return _promoting(optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw))


def _promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    # Optax raises floats to integer powers, which jax_numpy_dtype_promotion=strict forbids.
    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)
