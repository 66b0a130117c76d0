"""The loss of semantic segmentation, as sums with the weight that they are to be divided by.

Sums and weights of the parts of a batch add up to those of the batch, so a step that is split, over
devices or in time, divides once, at the end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from natjax.dense.resize import resize_bilinear

IGNORE = 255
"""The label of pixels that have none."""

Sum = tuple[Float[Array, ""], Float[Array, ""]]


def pixel_cross_entropy(
    logits: Float[Array, "B h w classes"], labels: Integer[Array, "B H W"], *, ignore: int = IGNORE
) -> Sum:
    """Softmax cross-entropy of every pixel, of logits interpolated to the size of the labels.

    Args:
      logits: at any size.
      labels: class of each pixel, or ``ignore``.
      ignore: label of pixels whose loss is 0.

    Returns:
      The sum over pixels, and the number of **all** pixels: as in mmsegmentation, those to be
      ignored dilute the mean. A label that is neither a class nor ``ignore`` makes the sum NaN.
    """
    logits = resize_bilinear(logits, labels.shape[1:3])
    labels = labels.astype(jnp.int32)
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_label = labels[..., None] == classes[None, None, None, :]
    # A sum over classes, which unlike a lookup has a gradient without scatter.
    own = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    own = jnp.where(jnp.any(is_label, axis=-1), own, jnp.nan)
    losses = jnp.where(labels == ignore, 0, jax.nn.logsumexp(logits, axis=-1) - own)
    return jnp.sum(losses), _count(labels, losses.dtype)


def pixel_accuracy(logits: Float[Array, "B h w classes"], labels: Integer[Array, "B H W"]) -> Sum:
    """Pixels whose largest logit is their label's.

    Args:
      logits: at any size, interpolated to that of the labels.
      labels: class of each pixel, or a number that is none and so never right.

    Returns:
      The number of them, and that of all pixels.
    """
    logits = resize_bilinear(logits, labels.shape[1:3])
    right = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels.astype(jnp.int32)
    return jnp.sum(right, dtype=logits.dtype), _count(labels, logits.dtype)


def segmentation_loss(
    logits: Float[Array, "B h w classes"],
    auxiliary: Float[Array, "B h2 w2 classes"] | None,
    labels: Integer[Array, "B H W"],
    *,
    auxiliary_weight: float = 0.4,
    ignore: int = IGNORE,
) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sum]]:
    """The loss of both heads.

    Args:
      logits: of the decode head.
      auxiliary: of the auxiliary head; None where there is none.
      labels: class of each pixel, or ``ignore``.
      auxiliary_weight: weight of the auxiliary head's loss.
      ignore: label of pixels whose loss is 0.

    Returns:
      The sum over pixels, the number of all pixels, and by name what to log, each as a sum and its
      weight: ``loss_decode``, ``accuracy`` and, of the auxiliary head and weighted,
      ``loss_auxiliary``.
    """
    total, weight = pixel_cross_entropy(logits, labels, ignore=ignore)
    scalars = {"loss_decode": (total, weight), "accuracy": pixel_accuracy(logits, labels)}
    if auxiliary is not None:
        more, _ = pixel_cross_entropy(auxiliary, labels, ignore=ignore)
        more = auxiliary_weight * more
        scalars["loss_auxiliary"] = more, weight
        total = total + more
    return total, weight, scalars


def _count(labels: Array, dtype: jnp.dtype) -> Array:
    return jnp.asarray(labels.size, dtype)
