"""What is left in the run folder to look at when a run ends, and the last words on the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from natjax.train import console
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.cluster import processes
from natjax.train.engine.evaluate import best_of, closed
from natjax.train.engine.sharding import put_batch
from natjax.train.engine.state import TrainState
from natjax.train.engine.summary import summary_rows
from natjax.train.engine.task import HostBatch, Scores
from natjax.train.engine.trainer import Trainer
from natjax.train.reporting.metrics import read_metrics
from natjax.train.reporting.page import write_page
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
    pictured = jax.device_get(trainer.compiled.pictured(*state.averaged(), rows))
    if processes.index() != 0:
        return {}
    curves = folder.path / "curves.png"
    plot_curves(list(read_metrics(folder.metrics)), task.panels, curves, task.title(scores))
    written = task.pictures(folder.path, scores, (batch, _own_rows(pictured, batch)))
    return {name: str(path) for name, path in {"curves": curves, **written}.items()}


def write_report(
    trainer: Trainer,
    folder: RunFolder,
    results: Mapping[str, Scores],
    pictures: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Path:
    """Write one page with all there is to look at, and return the file.

    Args:
      trainer: Parts of the run.
      folder: Where to write.
      results: Scores of the last weights, by ``"raw"`` and ``"ema"``.
      pictures: What `write_pictures` returned.
      settings: Of the run.
    """
    task, page = trainer.task, folder.path / "report.html"
    shown = {quantity.title: name for name, quantity in task.quantities.items()}
    scores = {
        WEIGHTS[weights]: {
            title: f"{found.values[name]:{task.quantities[name].format}}"
            for title, name in shown.items()
            if name in found.values
        }
        for weights, found in results.items()
    }
    write_page(
        page,
        title=task.title(best_of(results)),
        facts=summary_rows(trainer),
        scores=scores,
        pictures={name: Path(path) for name, path in pictures.items()},
        settings=settings,
    )
    return page


def _own_rows(pictured: HostBatch, batch: HostBatch) -> HostBatch:
    """What is known of this process' rows, which in the first are the first of the batch."""
    count = len(batch["mask"])
    return {name: np.asarray(values)[:count] for name, values in pictured.items()}


def tell_end(
    trainer: Trainer,
    folder: RunFolder,
    results: dict[str, Scores],
    pictures: Mapping[str, str],
    report: Path | None,
    seconds: float,
) -> None:
    """Say how a run has ended.

    Args:
      trainer: Parts of the run.
      folder: Its folder.
      results: Scores of the last weights, by ``"raw"`` and ``"ema"``.
      pictures: What `write_pictures` returned.
      report: What `write_report` returned, in the process that writes.
      seconds: What this process took.
    """
    task = trainer.task
    for weights, scores in results.items():
        count = scores.values[task.unit]
        console.say(f"{WEIGHTS[weights]}: {task.show(scores)}, {count:,} {task.unit}")
    console.say(f"{trainer.total_steps} steps, {format_seconds(seconds)} in this process")
    files = {**pictures, "metrics": folder.metrics, "checkpoints": folder.checkpoints}
    if report is not None:
        files["report"] = report  # last, as it shows the others
    for name, path in files.items():
        console.say(f"{name + ':':<13}{path}")
