"""What is left in the run folder to look at when a run ends."""

import jax
import numpy as np

from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.cluster import processes
from natjax.train.engine.evaluate import Evaluation
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.state import TrainState
from natjax.train.engine.trainer import Trainer
from natjax.train.reporting.metrics import read_metrics
from natjax.train.reporting.plots import plot_curves, plot_predictions
from natjax.train.tasks.classification.confusion import write_counts
from natjax.train.tasks.classification.confusion_plot import plot_confusion

_SHOWN = 40


def write_pictures(
    trainer: Trainer, state: TrainState, folder: RunFolder, result: Evaluation
) -> None:
    """Write learning curves, a grid of the first test images with predictions, and the confusion.

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
    title = _title(trainer, result)
    write_confusion(trainer, folder, result)
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


def write_confusion(trainer: Trainer, folder: RunFolder, result: Evaluation) -> None:
    """Write what is taken for what, as a picture and as counts; only the first process does.

    Args:
      trainer: Parts of the run.
      folder: Where to write.
      result: Of all test images.
    """
    if processes.index() != 0:
        return
    names = trainer.spec.class_names
    plot_confusion(result.confusion, names, folder.confusion, _title(trainer, result))
    write_counts(result.confusion, names, folder.confusion_counts)


def _title(trainer: Trainer, result: Evaluation) -> str:
    name = f"{trainer.config.model.name} on {trainer.spec.name}"
    return f"{name}: {result.top1:.2%} of {result.images} test images"
