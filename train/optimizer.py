"""AdamW, its schedule, and what it decays."""

from collections.abc import Callable

import jax
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
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=total_steps,
        end_value=config.final_learning_rate,
    )


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
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
