"""Everything a run is made of, put together from its configuration."""

import dataclasses

import grain
from jax.sharding import Mesh

from natjax.train import console
from natjax.train.cluster import processes
from natjax.train.config.settings import TrainConfig
from natjax.train.data.datasets import DatasetSpec, get_spec, open_dataset, open_split
from natjax.train.data.pipeline import Host, test_dataset, train_dataset
from natjax.train.engine.compilation_cache import use_compilation_cache
from natjax.train.engine.compile import Compiled, compile_task
from natjax.train.engine.finite import choose_step
from natjax.train.engine.sharding import check_batch_size, make_mesh, request_devices
from natjax.train.engine.task import build_task, count_steps


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
      train_images: Images of the training split.
    """

    config: TrainConfig
    spec: DatasetSpec
    mesh: Mesh
    compiled: Compiled
    train_data: grain.MapDataset
    test_data: grain.MapDataset
    total_steps: int
    train_images: int


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the data (preparing it where needed) and set up model, optimizer and mesh.

    Nothing is compiled and no parameter computed yet.

    Raises:
      UserError: a name, a number or a folder in the configuration is wrong.
    """
    console.quiet_libraries()
    use_compilation_cache(config.compilation_cache)
    request_devices(config.mesh)
    console.only_first_process(processes.index())
    spec, mesh = get_spec(config.data), make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    builder = open_dataset(spec, config.data)
    train_split = open_split(builder, spec.train_split)
    task = build_task(config, spec, len(train_split))
    host = Host(processes.index(), processes.count())
    rows = {"batch_size": config.batch_size, "host": host}
    return Trainer(
        config=config,
        spec=spec,
        mesh=mesh,
        compiled=compile_task(task, mesh, choose_step(config)),
        train_data=train_dataset(
            train_split, spec, config.data, config.augment, seed=config.seed, **rows
        ),
        test_data=test_dataset(open_split(builder, spec.test_split), spec, config.data, **rows),
        total_steps=count_steps(config, len(train_split)),
        train_images=len(train_split),
    )
