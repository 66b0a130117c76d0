"""Labelled images as batches: decoded, changed at random for training, whole for evaluation."""

import dataclasses
from typing import Any

import grain
import numpy as np

from natjax.train.cluster.processes import Host
from natjax.train.data.datasets import Source
from natjax.train.data.images import add_border, decode, to_pixels
from natjax.train.data.pipeline import Batch, Batches, test_batches, train_dataset
from natjax.train.data.readable import DecodeImage, Readable
from natjax.train.engine.task import Stages
from natjax.train.tasks.classification.augment.crop import evaluation_view
from natjax.train.tasks.classification.augment.pipeline import TrainTransform
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """Makes a training example of a record; a class, since worker processes receive it pickled.

    Attributes:
      border: Of the data set.
      transform: What is random about it.
    """

    border: float
    transform: TrainTransform

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        """Return ``image``, uint8, and ``label``; every draw comes from `rng`."""
        image = add_border(record["image"], self.border)
        return _example(self.transform(image, rng), record)


@dataclasses.dataclass(frozen=True)
class HeldOutExample:
    """Makes the held-out example of an index; picklable too.

    Attributes:
      records: All of them.
      channels: Of the data set.
      border: Of the data set.
      data: The view of evaluation.
    """

    records: Readable
    channels: int
    border: float
    data: ImagesConfig

    def __call__(self, index: int) -> Batch:
        """Return ``image`` and ``label``, and a False ``mask`` where the image cannot be read."""
        record = self.records.get(index)
        if record is None:
            side = (self.data.image_size, self.data.image_size, self.channels)
            return _example(np.zeros(side, np.uint8), {"label": 0}) | {"mask": np.bool_(False)}
        view = evaluation_view(add_border(record["image"], self.border), self.data)
        return _example(to_pixels(view), record)


def train_example(spec: LabelledImages, data: ImagesConfig, augment: AugmentConfig) -> TrainExample:
    """Return what makes training examples, as far as they are made on the host."""
    transform = TrainTransform(augment=augment, data=data, mean=spec.mean)
    return TrainExample(spec.border, transform)


def train_images(
    source: Source,
    spec: LabelledImages,
    data: ImagesConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    batch_size: int,
    host: Host,
) -> grain.MapDataset:
    """Return the endless sequence of training batches, by step.

    Args:
      source: The records.
      spec: How to decode.
      data: Size of the images.
      augment: Random changes; those of whole batches are left to the step.
      seed: Seed of the order and the augmentation.
      batch_size: Images a step, over all hosts.
      host: Which rows this process makes.
    """
    records = Readable(source, DecodeImage(spec.channels), spec.train_split)
    example = train_example(spec, data, augment)
    return train_dataset(records, example, seed=seed, batch_size=batch_size, host=host)


def test_images(
    source: Source, spec: LabelledImages, data: ImagesConfig, *, batch_size: int, host: Host
) -> Batches:
    """Return batches that hold every held-out image once, in order, with a mask.

    What cannot be read is masked, and named.

    Args:
      source: The records.
      spec: How to decode.
      data: The view of evaluation, and how many threads and workers.
      batch_size: Images a batch, over all hosts.
      host: Which rows this process makes.
    """
    records = Readable(source, DecodeImage(spec.channels), spec.test_split)
    example = HeldOutExample(records, spec.channels, spec.border, data)
    return test_batches(len(source), example, data, batch_size=batch_size, host=host)


def input_stages(
    source: Source, spec: LabelledImages, data: ImagesConfig, augment: AugmentConfig, seed: int
) -> Stages:
    """Return what is done with a training image, as `natjax.train.data.bench` times it."""
    example, rng = train_example(spec, data, augment), np.random.default_rng(seed)

    def decoded(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"image": decode(record["image"], spec.channels)}

    return {
        "read": source.__getitem__,
        "decode": decoded,
        "change at random": lambda record: example(record, rng),
    }


def _example(pixels: np.ndarray, record: dict[str, Any]) -> Batch:
    return {"image": np.ascontiguousarray(pixels), "label": np.int32(record["label"])}
