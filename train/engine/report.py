"""What is left in the run folder to look at when a run ends, and the last words on the screen."""

import jax
import numpy as np

from natjax.train import console
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.cluster import processes
from natjax.train.engine.evaluate import closed
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.state import TrainState
from natjax.train.engine.task import HostBatch, Scores
from natjax.train.engine.trainer import Trainer
from natjax.train.reporting.metrics import read_metrics
from natjax.train.reporting.progress import format_seconds

WEIGHTS = {"raw": "last weights", "ema": "averaged weights"}


def write_pictures(
    trainer: Trainer, state: TrainState, folder: RunFolder, scores: Scores
) -> dict[str, str]:
    """Write learning curves and the pictures of the task; return the files by heading.

    Every process of a job must call it; the first one writes.

    Args:
      trainer: Parts of the run.
      state: Its last state; the averaged weights predict.
      folder: Where to write.
      scores: Of the averaged weights.
    """
    from natjax.train.reporting.curves import plot_curves  # here, as it brings in Matplotlib

    task = trainer.task
    with closed(iter(task.eval_batches(trainer.host))) as batches:
        batch = next(batches)
    rows = put_batch(batch, trainer.compiled.batch)
    predictions = jax.device_get(trainer.compiled.predict(*state.averaged(), rows))
    if processes.index() != 0:
        return {}
    curves = folder.path / "curves.png"
    plot_curves(list(read_metrics(folder.metrics)), task.panels, curves, task.title(scores))
    written = task.pictures(folder.path, scores, (batch, _own_rows(predictions, batch)))
    return {name: str(path) for name, path in {"curves": curves, **written}.items()}


def _own_rows(predictions: HostBatch, batch: HostBatch) -> HostBatch:
    """The predictions of this process' rows, which in the first are the first of the batch."""
    count = len(batch["mask"])
    return {name: np.asarray(values)[:count] for name, values in predictions.items()}


def tell_end(
    trainer: Trainer,
    folder: RunFolder,
    results: dict[str, Scores],
    pictures: dict[str, str],
    seconds: float,
) -> None:
    """Say how a run has ended.

    Args:
      trainer: Parts of the run.
      folder: Its folder.
      results: Scores of the last weights, by ``"raw"`` and ``"ema"``.
      pictures: What `write_pictures` returned.
      seconds: What this process took.
    """
    task = trainer.task
    for weights, scores in results.items():
        count = scores.values[task.unit]
        console.say(f"{WEIGHTS[weights]}: {task.show(scores)}, {count:,} {task.unit}")
    console.say(f"{trainer.total_steps} steps, {format_seconds(seconds)} in this process")
    files = {**pictures, "metrics": folder.metrics, "checkpoints": folder.checkpoints}
    for name, path in files.items():
        console.say(f"{name + ':':<13}{path}")
