"""What tests of detectors share: random boxes, and the goldens' choice of samples."""

import jax.numpy as jnp
import numpy as np


def random_boxes(rng, shape, size=(64.0, 96.0), least=0.5):
    """Boxes inside an image of ``size`` (height, width), of sides from ``least`` on."""
    height, width = size
    corners = rng.uniform(0, 1, (*shape, 2, 2)) * np.array([width, height])
    low, high = corners.min(axis=-2), corners.max(axis=-2)
    return np.concatenate([low, np.maximum(high, low + least)], axis=-1).astype(np.float32)


def every_nth(key, candidates, number, limit):
    """The subset of the goldens: ``candidates[i * total // number]``, without chance."""
    del key
    total = jnp.sum(candidates, dtype=jnp.int32)
    number = jnp.minimum(number, total)
    i = jnp.arange(limit, dtype=jnp.int32)
    ranks = i * total // jnp.maximum(number, 1)
    rank = jnp.cumsum(candidates.astype(jnp.int32)) - 1
    hit = (rank[:, None] == ranks[None, :]) & (i < number)[None, :]
    return candidates & jnp.any(hit, axis=1)
