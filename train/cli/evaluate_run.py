"""Evaluation of a finished or interrupted run: the command ``natjax eval``."""

import dataclasses
from pathlib import Path

from rich.table import Table

from natjax.train import console
from natjax.train.checkpoint.checkpointer import restore, state_items
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.config.settings import MeshConfig
from natjax.train.engine.evaluate import Evaluation, best_of, evaluate
from natjax.train.engine.trainer import build_trainer
from natjax.train.errors import UserError
from natjax.train.reporting.pictures import write_confusion

_ITEM = {"raw": "params", "ema": "ema"}


def evaluate_run(
    path: Path, *, step: int | None = None, devices: int = 1, data_dir: Path | None = None
) -> tuple[int, dict[str, Evaluation]]:
    """Evaluate the weights of a run over all held-out images.

    What the averaged weights take for what is written into the run folder.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      devices: Devices to split each batch over.
      data_dir: Folder with the original files, where the data set is not prepared here.

    Returns:
      The step, and the results by ``"raw"`` and, where an average is kept, ``"ema"``.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    data = dataclasses.replace(config.data, dir=data_dir or config.data.dir)
    mesh = MeshConfig(data=devices)
    trainer = build_trainer(dataclasses.replace(config, data=data, mesh=mesh))
    items = state_items(trainer.compiled.target)
    target = {item: items[item] for item in _ITEM.values() if item in items}
    restored = restore(folder.checkpoints, target, step=step)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet; train until the first one is written")
    results = {
        weights: evaluate(trainer.compiled, restored.items[item], trainer.test_data)
        for weights, item in _ITEM.items()
        if item in target
    }
    try:
        write_confusion(trainer, folder, best_of(results))
    except OSError as error:  # such as a folder that may only be read: the numbers are there
        console.warn(f"cannot write {folder.confusion}: {error}")
    return restored.step, results


def evaluation_table(step: int, results: dict[str, Evaluation]) -> Table:
    """Return the results as a table; `step` names the checkpoint."""
    images = results["raw"].images
    table = Table(title=f"step {step}, {images:,} held-out images", title_justify="left")
    table.add_column("weights")
    for name in ("top-1", "top-5", "loss (nats)"):
        table.add_column(name, justify="right")
    for weights, result in results.items():
        name = {"raw": "last", "ema": "averaged"}[weights]
        table.add_row(name, f"{result.top1:.2%}", f"{result.top5:.2%}", f"{result.loss:.4f}")
    return table


def show_evaluation(step: int, results: dict[str, Evaluation]) -> None:
    """Print the results."""
    console.say(evaluation_table(step, results))
