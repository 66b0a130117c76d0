"""Accuracy over every held-out image, exact for any batch size and any number of hosts."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from natjax.train.data.pipeline import Batch
from natjax.train.engine.compile import Evaluator
from natjax.train.engine.functional import Params
from natjax.train.engine.sharding import put_batch
from natjax.train.tasks.classification.confusion import Confusion, count_pairs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result over a split.

    Attributes:
      images: How many images were counted.
      loss: Mean cross-entropy in nats, without label smoothing.
      top1: Share of images whose label is the most likely class.
      top5: Share of images whose label is among the five most likely classes.
      confusion: What was taken for what.
    """

    images: int
    loss: float
    top1: float
    top5: float
    confusion: Confusion = dataclasses.field(
        default_factory=lambda: count_pairs([]), repr=False, compare=False
    )

    def scores(self) -> dict[str, float | int]:
        """Return the numbers by name, without the confusion."""
        names = ("images", "loss", "top1", "top5")
        return {name: getattr(self, name) for name in names}


def best_of(results: dict[str, Evaluation]) -> Evaluation:
    """Return the result that decides: of the averaged weights (``"ema"``) where there are any.

    Args:
      results: By ``"raw"`` and ``"ema"``.
    """
    return results.get("ema", results["raw"])


class NoImagesError(ValueError):
    """There is nothing to evaluate on."""


def evaluate(compiled: Evaluator, params: Params, batches: Iterable[Batch]) -> Evaluation:
    """Evaluate one set of weights.

    Args:
      compiled: Functions of the run.
      params: Raw or averaged weights.
      batches: As `natjax.train.data.pipeline.test_dataset` makes them; masked images do not count.

    Raises:
      NoImagesError: no image counts.
    """
    totals = {"images": 0, "loss": 0.0, "top1": 0, "top5": 0}
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        sums = jax.device_get(compiled.evaluate(params, put_batch(batch, compiled.batch)))
        pairs.append((sums["label"], sums["guess"]))
        for name in totals:
            totals[name] += sums[name].item()
    images = totals["images"]
    if not images:
        raise NoImagesError("the split must hold at least one image, got none")
    return Evaluation(
        images=int(images),
        loss=totals["loss"] / images,
        top1=totals["top1"] / images,
        top5=totals["top5"] / images,
        confusion=count_pairs(pairs),
    )
