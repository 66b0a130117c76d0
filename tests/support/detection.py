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


def training_batch(count=8, side=64, places=3, seed=0):
    """A batch of the training task: noise with objects that fill their boxes; all sizes differ."""
    rng = np.random.default_rng(seed)
    sizes = np.stack([side - np.arange(count), np.full(count, side)], axis=1).astype(np.int32)
    boxes = random_boxes(rng, (count, places), size=(side / 2, side / 2), least=6)
    pixels = np.arange(side) + 0.5
    x, y = pixels[None, None, None], pixels[None, None, :, None]
    x1, y1, x2, y2 = (boxes[..., i, None, None] for i in range(4))
    masks = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    return {
        "image": rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8),
        "size": sizes,
        "boxes": boxes,
        "label": rng.integers(0, 3, (count, places)).astype(np.int32),
        "valid": np.arange(places)[None] < 1 + np.arange(count)[:, None] % places,
        "masks": np.packbits(masks, axis=-1),
    }
