"""Runs as the commands find them: task, configuration and weights of a folder."""

import dataclasses
from collections.abc import Sequence
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
    path: Path, *, step: int | None = None, kind: str = "ema", file: Path | None = None
) -> LoadedRun:
    """Return a run with the weights of a checkpoint.

    Args:
      path: The run folder.
      step: Step of the checkpoint; None takes the newest sound one.
      kind: ``"ema"`` (averaged) or ``"raw"``; a run without averages has only the second.
      file: File that defines the task, for tasks of files.

    Raises:
      UserError: there is no such run or checkpoint.
    """
    console.quiet_libraries()
    definition, config = read_run(RunFolder(path), file)
    task = definition.build(config)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kind = "raw" if config.ema_decay is None else kind
    taken, weights = restore_weights(path, task, one, kinds=(kind,), step=step)
    return LoadedRun(task, taken, *weights[kind])


def restore_weights(
    path: Path,
    task: Task[Any],
    sharding: jax.sharding.Sharding,
    *,
    kinds: Sequence[str],
    step: int | None = None,
) -> tuple[int, dict[str, tuple[Params, Statistics]]]:
    """Return the step of a checkpoint, and its weights by kind.

    Args:
      path: The run folder.
      task: Its task.
      sharding: Of all arrays.
      kinds: ``"raw"``, ``"ema"``, or both.
      step: Step of the checkpoint; None takes the newest sound one.

    Raises:
      UserError: there is no such checkpoint.
    """
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(task.init),
    )
    wanted = {kind: weights_items(kind, *shapes) for kind in kinds}
    items = {name: item for of_kind in wanted.values() for name, item in of_kind.items()}
    restored = restore(RunFolder(path).checkpoints, items, step=step)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet; train until the first one is written")
    found = {}
    for kind, names in wanted.items():
        values = weights_of({name: restored.items[name] for name in names})
        params, statistics = ({name: values[name] for name in part} for part in shapes)
        found[kind] = (params, statistics)
    return restored.step, found
