"""Loss and accuracy of a classifier: of a batch on the devices, of a whole split on the host."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from natjax.train.engine.task import NoExamplesError, Scores
from natjax.train.reporting.confusion import count_pairs


def cross_entropy(
    logits: Float[Array, "B L"], labels: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
    """Return each image's cross-entropy in nats, with `smoothing` of the target spread evenly."""
    log_p = jax.nn.log_softmax(logits)
    target = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -((1 - smoothing) * target + smoothing * log_p.mean(axis=1))


def rank_of_label(logits: Float[Array, "B L"], labels: Int[Array, " B"]) -> Int[Array, " B"]:
    """Return how many classes come before the label; 0 is a hit. Equal logits: smaller label first.

    A logit that is not a number puts the label last, so that a broken model never scores.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])[None, :]
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return jnp.where(jnp.isfinite(own[:, 0]), before.sum(axis=1), logits.shape[1])


def measure_logits(
    logits: Float[Array, "B L"], labels: Int[Array, " B"], mask: Bool[Array, " B"]
) -> dict[str, Array]:
    """Return sums over the images of a batch whose mask is True.

    Args:
      logits: What the network says.
      labels: True classes.
      mask: Which images count.

    Returns:
      ``loss`` (sum, nats, float32) and the counts ``images``, ``top1``, ``top5`` (int32). With
      fewer than five classes ``top5`` counts every image. Ties count for the smaller label. And of
      each image, int32[B], ``label``, -1 where masked, and ``guess``, equal to it where ``top1``
      counts the image; -1 where logits that are not numbers hide the guess.
    """
    losses = cross_entropy(logits, labels, 0.0)
    rank = rank_of_label(logits, labels)
    hit = rank < 1
    guess = logits.argmax(axis=-1).astype(jnp.int32)
    wrong = jnp.where(guess == labels, -1, guess)
    return {
        "label": jnp.where(mask, labels, -1),
        "guess": jnp.where(hit, labels, wrong),
        "images": mask.sum(dtype=jnp.int32),
        "loss": jnp.where(mask, losses, 0.0).sum(),
        "top1": (mask & hit).sum(dtype=jnp.int32),
        "top5": (mask & (rank < 5)).sum(dtype=jnp.int32),
    }


class ClassificationEvaluator:
    """Adds up what `measure_logits` says of batches."""

    def __init__(self) -> None:
        self._totals = {"images": 0, "loss": 0.0, "top1": 0, "top5": 0}
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, measured: Mapping[str, np.ndarray]) -> None:
        """Count a batch."""
        self._pairs.append((measured["label"], measured["guess"]))
        for name in self._totals:
            self._totals[name] += measured[name].item()

    def result(self) -> Scores:
        """Return number of images, mean loss, shares of top-1 and top-5, and the confusion.

        Raises:
          NoExamplesError: no image has counted.
        """
        images = int(self._totals["images"])
        if not images:
            raise NoExamplesError("the split must hold at least one image, got none")
        means = {name: self._totals[name] / images for name in ("loss", "top1", "top5")}
        return Scores(
            values={"images": images, **means}, primary="top1", detail=count_pairs(self._pairs)
        )
