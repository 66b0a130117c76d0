"""Batches: a pure function of (seed, step), whatever the number of hosts, threads and workers.

That is why a checkpoint need not hold the state of any iterator: to resume at a step is to slice.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from natjax.train.augment.pipeline import TrainTransform
from natjax.train.config import AugmentConfig, DataConfig
from natjax.train.datasets import DatasetSpec, Source
from natjax.train.transforms import add_border, center_view, decode, to_pixels

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
    """Decodes and augments one record; a class, since worker processes receive it pickled."""

    channels: int
    border: float
    transform: TrainTransform

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        image = add_border(decode(record["image"], self.channels), self.border)
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
    records = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    transform = TrainTransform(augment=augment, data=data, mean=spec.mean)
    examples = records.random_map(_TrainExample(spec.channels, spec.border, transform))
    # In batches of one host's size, which the hosts take in turn.
    return examples.batch(batch_size // host.count, drop_remainder=True)[host.index :: host.count]


def train_batches(dataset: grain.MapDataset, config: DataConfig, start: int) -> Iterator[Batch]:
    """Iterate from step `start` on, decoding ahead in threads or worker processes."""
    ahead = max(4, config.threads)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)
    batches = dataset[start:].to_iter_dataset(options)
    if config.workers:
        _allow_workers()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
        )
    return iter(batches)


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
    one shape on every host.

    Args:
      source: The records.
      spec: How to decode.
      data: The view of evaluation.
      batch_size: Images a batch, over all hosts.
      host: Which rows this process makes.
    """
    count = len(source)
    padded = -(-count // batch_size) * batch_size

    def example(index: int) -> Batch:
        record = source[min(index, count - 1)]
        image = add_border(decode(record["image"], spec.channels), spec.border)
        pixels = to_pixels(center_view(image, data))
        return _example(pixels, record) | {"mask": np.bool_(index < count)}

    rows = grain.MapDataset.range(padded).map(example)
    return rows.batch(batch_size // host.count)[host.index :: host.count]
