"""Everything a run is made of, put together from its configuration."""

import dataclasses
import math

import grain
import jax

from natjax.train import console
from natjax.train.compiled import Compiled, compile_task
from natjax.train.config import TrainConfig
from natjax.train.data import Host, test_dataset, train_dataset
from natjax.train.datasets import DatasetSpec, get_spec, open_dataset, open_split
from natjax.train.finite import choose_step
from natjax.train.functional import build_model
from natjax.train.optimizer import make_optimizer, schedule
from natjax.train.sharding import make_mesh, request_devices
from natjax.train.step import Network, Task


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Parts of a run; nothing of it changes while it goes on.

    Attributes:
      config: The configuration.
      spec: The data set.
      compiled: The jitted functions.
      train_data: Endless sequence of training batches, by step.
      test_data: Batches that hold every held-out image once.
      total_steps: Steps of the whole run.
      train_images: Images of the training split.
    """

    config: TrainConfig
    spec: DatasetSpec
    compiled: Compiled
    train_data: grain.MapDataset
    test_data: grain.MapDataset
    total_steps: int
    train_images: int


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
    console.only_first_process(jax.process_index())
    spec, mesh = get_spec(config.data), make_mesh(config.mesh)
    model = build_model(config.model, spec, config.seed)
    builder = open_dataset(spec, config.data)
    train_split = open_split(builder, spec.train_split)
    total = count_steps(config, len(train_split))
    per_epoch = len(train_split) / config.batch_size
    task = Task(
        network=Network(model, spec.mean, spec.std),
        optimizer=make_optimizer(config.optimizer, total, per_epoch),
        schedule=schedule(config.optimizer, total, per_epoch),
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        seed=config.seed,
        ema_warmup=config.ema_warmup,
        mix=config.augment.mix,
        erase=config.augment.erase,
        accumulate=config.accumulate,
    )
    host = Host(jax.process_index(), jax.process_count())
    rows = {"batch_size": config.batch_size, "host": host}
    return Trainer(
        config=config,
        spec=spec,
        compiled=compile_task(task, mesh, choose_step(config)),
        train_data=train_dataset(
            train_split, spec, config.data, config.augment, seed=config.seed, **rows
        ),
        test_data=test_dataset(open_split(builder, spec.test_split), spec, config.data, **rows),
        total_steps=total,
        train_images=len(train_split),
    )
