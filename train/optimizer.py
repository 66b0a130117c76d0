"""AdamW, its schedule, and what it decays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natjax.train.config import OptimizerConfig
from natjax.train.errors import UserError


def schedule(config: OptimizerConfig, total_steps: int) -> Callable[..., jax.Array]:
    """Return the learning rate as a function of the step, counted from 0.

    Linear from 0 to the peak in `warmup_steps`, then half a cosine down to `final_learning_rate` at
    `total_steps`, and constant from there.

    Raises:
      UserError: the warm-up is not shorter than the run.
    """
    if not 0 <= config.warmup_steps < total_steps:
        raise UserError(
            f"optimizer.warmup_steps must be in [0, {total_steps}), the steps of this run,"
            f" got {config.warmup_steps}"
        )
    peak, final, warmup = config.learning_rate, config.final_learning_rate, config.warmup_steps

    def rate(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step, jnp.float32)
        done = jnp.clip((count - warmup) / (total_steps - warmup), 0, 1)
        cosine = final + (peak - final) * (1 + jnp.cos(jnp.pi * done)) / 2
        return jnp.where(count < warmup, peak * count / max(warmup, 1), cosine)

    return rate


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


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter, 2019), behind clipping where configured.

    Raises:
      UserError: the schedule does not fit the run.
    """
    adamw = optax.adamw(
        schedule(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
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
