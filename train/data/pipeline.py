"""Batches: a pure function of (seed, step), whatever the number of hosts, threads and workers.

That is why a checkpoint need not hold the state of any iterator: to resume at a step is to slice.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from natjax.train.config.settings import AugmentConfig, DataConfig
from natjax.train.data.datasets import DatasetSpec, Source
from natjax.train.data.images import add_border, center_view, to_pixels
from natjax.train.data.readable import Readable
from natjax.train.data.workers import start_worker, steady
from natjax.train.tasks.classification.augment.pipeline import TrainTransform

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Host:
    """Which rows of every global batch this process makes: the `index`-th of `count` equal parts.

    Parts in one piece, so that the global array has the same rows in the same order for any number
    of hosts: what a step draws for a row, and which row is mixed with which, stays the same.
    """

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    """Augments one record; a class, since worker processes receive it pickled."""

    border: float
    transform: TrainTransform

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        image = add_border(record["image"], self.border)
        return _example(self.transform(image, rng), record)


def _example(pixels: np.ndarray, record: dict[str, Any]) -> Batch:
    return {"image": np.ascontiguousarray(pixels), "label": np.int32(record["label"])}


def train_dataset(
    source: Source,
    spec: DatasetSpec,
    data: DataConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    batch_size: int,
    host: Host,
) -> grain.MapDataset:
    """Return the endless sequence of training batches; element `step` depends on (seed, step) only.

    Every epoch is a new permutation of all records; batches run across the ends of epochs.

    Args:
      source: The records.
      spec: How to decode.
      data: Size of the images.
      augment: Random changes; those of whole batches are left to the step.
      seed: Seed of the permutations and the augmentation.
      batch_size: Images a step, over all hosts.
      host: Which rows this process makes; augmentation comes before the split over hosts.
    """
    source = Readable(source, spec.channels, spec.train_split)
    records = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    transform = TrainTransform(augment=augment, data=data, mean=spec.mean)
    examples = records.random_map(_TrainExample(spec.border, transform))
    # In batches of one host's size, which the hosts take in turn.
    return examples.batch(batch_size // host.count, drop_remainder=True)[host.index :: host.count]


def train_batches(dataset: grain.MapDataset, config: DataConfig, start: int) -> Iterator[Batch]:
    """Iterate from step `start` on, decoding ahead in threads or worker processes."""
    ahead = max(4, config.threads)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)

    def batches_from(step: int) -> Iterator[Batch]:
        batches = dataset[step:].to_iter_dataset(options)
        if config.workers:
            _allow_workers()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2),
                worker_init_fn=start_worker,
            ).map(_own_memory)
        return iter(batches)

    return steady(batches_from, start)


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


def test_dataset(
    source: Source, spec: DatasetSpec, data: DataConfig, *, batch_size: int, host: Host
) -> grain.MapDataset:
    """Return batches that hold every record once, in order, and a mask.

    The last batch is filled up with repetitions whose ``mask`` is False, so that all batches have
    one shape on every host. What cannot be read is masked too, and named.

    Args:
      source: The records.
      spec: How to decode.
      data: The view of evaluation.
      batch_size: Images a batch, over all hosts.
      host: Which rows this process makes.
    """
    count, images = len(source), Readable(source, spec.channels, spec.test_split)
    padded = -(-count // batch_size) * batch_size

    def example(index: int) -> Batch:
        record = images.get(min(index, count - 1))
        if record is None:
            side = (data.image_size, data.image_size, spec.channels)
            return _example(np.zeros(side, np.uint8), {"label": 0}) | {"mask": np.bool_(False)}
        pixels = to_pixels(center_view(add_border(record["image"], spec.border), data))
        return _example(pixels, record) | {"mask": np.bool_(index < count)}

    rows = grain.MapDataset.range(padded).map(example)
    return rows.batch(batch_size // host.count)[host.index :: host.count]
