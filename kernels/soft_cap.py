"""Soft cap of logits."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_capped(
    products: Float[Array, "*Y"], soft_cap: float | None
) -> Float[Array, "*Y"]:
    """``soft_cap * tanh(products / soft_cap)``: within the cap, and as it was near 0."""
    return products if soft_cap is None else soft_cap * jnp.tanh(products / soft_cap)
