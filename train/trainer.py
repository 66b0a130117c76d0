"""Everything a run is made of, put together from its configuration."""

import dataclasses
import math

import grain
from jax.sharding import Mesh

from natjax.train import console, processes
from natjax.train.compiled import Compiled, compile_task
from natjax.train.config import TrainConfig
from natjax.train.data import Host, test_dataset, train_dataset
from natjax.train.datasets import DatasetSpec, get_spec, open_dataset, open_split
from natjax.train.functional import build_model
from natjax.train.optimizer import make_optimizer, schedule
from natjax.train.sharding import check_batch_size, make_mesh, request_devices
from natjax.train.step import Network, Task


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Parts of a run; nothing of it changes while it goes on.

    Attributes:
      config: The configuration.
      spec: The data set.
      mesh: The devices.
      compiled: The jitted functions.
      train_data: Endless sequence of training batches, by step.
      test_data: Batches that hold every held-out image once.
      total_steps: Steps of the whole run.
    """

    config: TrainConfig
    spec: DatasetSpec
    mesh: Mesh
    compiled: Compiled
    train_data: grain.MapDataset
    test_data: grain.MapDataset
    total_steps: int


def count_steps(config: TrainConfig, images: int) -> int:
    """Return the steps of a run: as configured, else enough for all epochs.

    Args:
      config: The configuration.
      images: Training images.
    """
    return config.steps or math.ceil(config.epochs * images / config.batch_size)


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the data (preparing it where needed) and set up model, optimizer and mesh.

    Nothing is compiled and no parameter computed yet.

    Raises:
      UserError: a name, a number or a folder in the configuration is wrong.
    """
    console.quiet_libraries()
    request_devices(config.mesh)
    console.only_first_process(processes.index())
    spec, mesh = get_spec(config.data.name), make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    model = build_model(config.model, spec, config.seed)
    builder = open_dataset(spec, config.data)
    train_split = open_split(builder, spec.train_split)
    total = count_steps(config, len(train_split))
    task = Task(
        network=Network(model, spec.mean, spec.std),
        optimizer=make_optimizer(config.optimizer, total),
        schedule=schedule(config.optimizer, total),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        seed=config.seed,
    )
    host = Host(processes.index(), processes.count())
    rows = {"batch_size": config.batch_size, "host": host}
    side = config.data.image_size
    return Trainer(
        config=config,
        spec=spec,
        mesh=mesh,
        compiled=compile_task(task, mesh),
        train_data=train_dataset(train_split, spec, side, seed=config.seed, **rows),
        test_data=test_dataset(open_split(builder, spec.test_split), spec, side, **rows),
        total_steps=total,
    )
