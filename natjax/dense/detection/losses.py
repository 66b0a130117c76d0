"""The losses of detectors, as sums with the weight that they are to be divided by.

A batch is normalised as a whole, whatever the number of devices that share it: sums and weights of
its parts add up to its own. (mmdetection divides by the counts of each device and then averages
over devices, which weights an image by how few boxes its neighbors on the device have.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from natjax.dense.ops.boxes import box_giou

Sum = tuple[Float[Array, ""], Float[Array, ""]]
"""A sum, and what it is to be divided by."""


def binary_cross_entropy(
    logits: Float[Array, "*N"], targets: Bool[Array, "*N"], mask: Bool[Array, "*N"]
) -> Float[Array, ""]:
    """Sum of the binary cross-entropies of logits, over what the mask leaves."""
    losses = jax.nn.softplus(logits) - jnp.where(targets, logits, 0)
    return jnp.sum(jnp.where(mask, losses, 0))


def cross_entropy(
    logits: Float[Array, "N K"], labels: Int[Array, "N"], mask: Bool[Array, "N"]
) -> Float[Array, ""]:
    """Sum of the softmax cross-entropies of logits, over what the mask leaves."""
    own = jnp.sum(select_class(logits[..., None], labels), axis=-1)
    return jnp.sum(jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - own, 0))


def smooth_l1(
    values: Float[Array, "*N 4"],
    targets: Float[Array, "*N 4"],
    mask: Bool[Array, "*N"],
    *,
    beta: float = 0.0,
) -> Float[Array, ""]:
    """Sum of distances from targets, over what the mask leaves.

    Args:
      values: deltas.
      targets: likewise; anything where the mask is False, even NaN.
      mask: boxes that count.
      beta: distances below it count as ``distance ** 2 / (2 * beta)``, others as ``distance - beta
        / 2``; 0 is L1.
    """
    distance = jnp.abs(jnp.where(mask[..., None], values - targets, 0))
    if beta:
        small = 0.5 * jnp.square(distance) / beta
        distance = jnp.where(distance < beta, small, distance - 0.5 * beta)
    return jnp.sum(distance)


def giou_loss(
    boxes: Float[Array, "*N 4"], targets: Float[Array, "*N 4"], mask: Bool[Array, "*N"]
) -> Float[Array, ""]:
    """Sum of ``1 - GIoU`` over what the mask leaves; other boxes may be anything, even NaN."""
    boxes, targets = (jnp.where(mask[..., None], x, 0) for x in (boxes, targets))
    return jnp.sum(jnp.where(mask, 1 - box_giou(boxes, targets), 0))


def select_class(values: Float[Array, "N K *S"], labels: Int[Array, "N"]) -> Float[Array, "N *S"]:
    """The values of one class for each box, 0 for a label that is no class.

    A sum over classes, which unlike a lookup has a gradient without scatter.
    """
    classes = jnp.arange(values.shape[1], dtype=labels.dtype)
    is_class = labels[:, None] == classes[None, :]
    is_class = is_class.reshape(*is_class.shape, *(1,) * (values.ndim - 2))
    return jnp.sum(jnp.where(is_class, values, 0), axis=1)


def count(mask: Bool[Array, "*N"]) -> Float[Array, ""]:
    """How many entries of a mask are True."""
    return jnp.sum(mask, dtype=jnp.float32)


def mean_loss(losses: dict[str, Sum]) -> Float[Array, ""]:
    """The loss that is minimised: every sum divided by its weight, or 0 where that is 0, added."""
    return sum(
        (total / jnp.maximum(weight, 1).astype(total.dtype) for total, weight in losses.values()),
        start=jnp.zeros((), next(iter(losses.values()))[0].dtype),
    )
