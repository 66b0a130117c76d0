"""Runs as the commands find them: task, configuration and weights of a folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from natjax.train import console
from natjax.train.checkpoint.checkpointer import restore
from natjax.train.checkpoint.run_folder import RunFolder
from natjax.train.engine.network import Params, Statistics
from natjax.train.engine.state import weights_items, weights_of
from natjax.train.engine.task import Task
from natjax.train.errors import UserError
from natjax.train.tasks.registry import read_run


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run with weights on one device.

    Attributes:
      task: Its task.
      step: Step of the checkpoint.
      params: Parameters.
      statistics: Statistics.
    """

    task: Task[Any]
    step: int
    params: Params
    statistics: Statistics


def load_run(
    path: Path, *, step: int | None = None, weights: str = "ema", file: Path | None = None
) -> LoadedRun:
    """Return a run with the weights of a checkpoint.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      weights: ``"ema"`` (averaged) or ``"raw"``; a run without averages has only the second.
      file: File that defines the task, for tasks of files.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    console.quiet_libraries()
    folder = RunFolder(path)
    definition, config = read_run(folder, file)
    task = definition.build(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        jax.eval_shape(task.init),
    )
    kind = "raw" if config.ema_decay is None else weights
    restored = restore(folder.checkpoints, weights_items(kind, *shapes), step=step)
    if restored is None:
        raise no_checkpoint(path)
    values = weights_of(restored.items)
    params, statistics = ({name: values[name] for name in part} for part in shapes)
    return LoadedRun(task, restored.step, params, statistics)


def no_checkpoint(path: Path) -> UserError:
    """Return the error for a run that has none."""
    return UserError(f"{path} has no checkpoint yet; train until the first one is written")
