"""Everything a run is made of, put together from its task."""

import dataclasses
import math
from typing import Any

from jax.sharding import Mesh

from natjax.train import console
from natjax.train.cluster import processes
from natjax.train.config.fitting import fitted_optimizer
from natjax.train.config.settings import RunConfig
from natjax.train.engine.compilation_cache import use_compilation_cache
from natjax.train.engine.compile import Compiled, compile_training
from natjax.train.engine.finite import choose_step
from natjax.train.engine.sharding import check_batch_size, make_mesh, request_devices
from natjax.train.engine.step import set_up_step
from natjax.train.engine.task import Task


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Parts of a run; nothing of it changes while it goes on.

    Attributes:
      task: What is learned.
      mesh: The devices.
      compiled: The jitted functions.
      host: Which rows of a batch this process makes.
      total_steps: Steps of the whole run.
      train_size: Examples of an epoch.
    """

    task: Task[Any]
    mesh: Mesh
    compiled: Compiled
    host: processes.Host
    total_steps: int
    train_size: int

    @property
    def config(self) -> RunConfig:
        """The configuration."""
        return self.task.config

    def epoch(self, step: int) -> float:
        """Return the passes over the training examples in so many steps."""
        return step * self.config.batch_size / self.train_size


def count_steps(config: RunConfig, train_size: int) -> int:
    """Return the steps of a run: as configured, else enough for all epochs.

    Args:
      config: The configuration.
      train_size: Examples of an epoch.
    """
    return config.steps or math.ceil(config.epochs * train_size / config.batch_size)


def build_trainer(task: Task[Any]) -> Trainer:
    """Open the data (preparing it where needed) and set up step and mesh.

    Nothing is compiled and no parameter computed yet.

    Raises:
      UserError: a name, a number or a folder in the configuration is wrong.
    """
    config = task.config
    console.quiet_libraries()
    use_compilation_cache(config.compilation_cache)
    request_devices(config.mesh)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    train_size = task.train_size()
    total = count_steps(config, train_size)
    per_epoch = train_size / config.batch_size
    setup = set_up_step(task, total, per_epoch)
    _, shortened = fitted_optimizer(config.optimizer, total, per_epoch)
    if shortened:
        console.say(shortened)
    return Trainer(
        task=task,
        mesh=mesh,
        compiled=compile_training(setup, mesh, choose_step(config)),
        host=processes.this_host(),
        total_steps=total,
        train_size=train_size,
    )
