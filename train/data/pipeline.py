"""Batches: a pure function of (seed, step), whatever the number of hosts, threads and workers.

That is why a checkpoint need not hold the state of any iterator: to resume at a step is to slice.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from natjax.train.cluster.processes import Host
from natjax.train.config.settings import DataConfig
from natjax.train.data.workers import restart_workers, start_worker

Batch = dict[str, np.ndarray]


def train_dataset(
    records: Any,
    example: Callable[[Any, np.random.Generator], Batch],
    *,
    seed: int,
    batch_size: int,
    host: Host,
) -> grain.MapDataset:
    """Return the endless sequence of training batches; element `step` depends on (seed, step) only.

    Every epoch is a new permutation of all records; batches run across the ends of epochs.

    Args:
      records: They have a length and are found by index.
      example: Makes a row of a batch of a record, every draw coming from the generator; picklable,
        as worker processes receive it. It comes before the split over hosts.
      seed: Seed of the permutations and of what `example` draws.
      batch_size: Examples a step, over all hosts.
      host: Which rows this process makes.
    """
    order = grain.MapDataset.source(records).seed(seed).shuffle().repeat()
    rows = order.random_map(example)
    # In batches of one host's size, which the hosts take in turn.
    return rows.batch(batch_size // host.count, drop_remainder=True)[host.index :: host.count]


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a finite data set; every iteration reads them anew, as `read` does.

    Attributes:
      dataset: Makes a batch of its index.
      config: How many threads and workers.
    """

    dataset: grain.MapDataset
    config: DataConfig

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        return read(self.dataset, self.config)


@dataclasses.dataclass(frozen=True)
class _MaskedRow:
    """Makes a row by its place; a class, as worker processes receive it pickled."""

    count: int
    example: Callable[[int], Batch]

    def __call__(self, place: int) -> Batch:
        found = self.example(min(place, self.count - 1))
        counts = found.get("mask", True) and place < self.count
        return found | {"mask": np.bool_(counts), "id": np.int32(place)}


def test_batches(
    count: int,
    example: Callable[[int], Batch],
    config: DataConfig,
    *,
    batch_size: int,
    host: Host,
) -> Batches:
    """Return batches that hold every record once, in order, with ``mask`` and ``id``.

    The last batch is filled up with repetitions whose ``mask`` is False, so that all batches have
    one shape on every host. So are rows whose record cannot be read; ``id`` is the record's index.

    Args:
      count: Number of records.
      example: Makes the row of a record by its index; ``mask`` False where it cannot be read.
        Picklable, as worker processes receive it.
      config: How many threads and workers.
      batch_size: Examples a batch, over all hosts.
      host: Which rows this process makes.
    """
    padded = -(-count // batch_size) * batch_size
    rows = grain.MapDataset.range(padded).map(_MaskedRow(count, example))
    return Batches(rows.batch(batch_size // host.count)[host.index :: host.count], config)


def read(dataset: grain.MapDataset, config: DataConfig, start: int = 0) -> Iterator[Batch]:
    """Iterate over batches from index `start` on, made ahead in threads or worker processes.

    Closing the iterator ends these. Threads are at most ``max(4, threads)`` batches ahead of what
    was taken; with workers, each of them is that many and two more ahead.

    Args:
      dataset: As `train_dataset` makes it; it may have an end.
      config: How many threads and workers.
      start: Of the first batch.
    """
    # More workers than batches would only start and end.
    workers = min(config.workers, len(dataset) - start)
    # Grain's own bound is 500 batches, whatever their size.
    ahead = max(4, config.threads)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)

    def batches_from(step: int) -> Iterator[Batch]:
        batches = dataset[step:].to_iter_dataset(options)
        if workers:
            _allow_workers()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=start_worker,
            ).map(_own_memory)
        return iter(batches)

    return restart_workers(batches_from, start)


def _own_memory(batch: Batch) -> Batch:
    """Copy a batch out of the memory that it shares with a worker.

    Grain frees that with its last reference. What the caller, or JAX, still holds when the process
    ends would come too late: nobody frees it then, and Python complains of leaked memory.
    """
    return {name: np.array(values) for name, values in batch.items()}


def _allow_workers() -> None:
    # Grain's workers read absl's flags, which nobody has parsed outside of absl.app.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
