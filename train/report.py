"""What is left in the run folder to look at when a run ends."""

import jax
import numpy as np

from natjax.train import processes
from natjax.train.evaluate import Evaluation
from natjax.train.metrics import read_metrics
from natjax.train.plots import plot_curves, plot_predictions
from natjax.train.run_folder import RunFolder
from natjax.train.sharding import put_batch
from natjax.train.state import TrainState
from natjax.train.trainer import Trainer

_SHOWN = 40


def write_pictures(
    trainer: Trainer, state: TrainState, folder: RunFolder, result: Evaluation
) -> None:
    """Write learning curves and a grid of the first test images with predictions.

    Every process of a job must call it; the first one writes.

    Args:
      trainer: Parts of the run.
      state: Its last state; the averaged weights predict.
      folder: Where to write.
      result: Accuracy of the averaged weights, for the titles.
    """
    batch = next(iter(trainer.test_data))
    images = put_batch({"image": batch["image"]}, trainer.compiled.batch)["image"]
    rows = np.asarray(jax.device_get(trainer.compiled.probabilities(state.averaged, images)))
    if processes.index() != 0:
        return
    name = f"{trainer.config.model.name} on {trainer.spec.name}"
    title = f"{name}: {result.top1:.2%} of {result.images} test images"
    plot_curves(list(read_metrics(folder.metrics)), folder.curves, title)
    # The first process has the first rows of the global batch.
    shown = np.flatnonzero(batch["mask"])[:_SHOWN]
    plot_predictions(
        batch["image"][shown],
        batch["label"][shown],
        rows[shown],
        trainer.spec.class_names,
        folder.predictions,
        title=title,
    )
