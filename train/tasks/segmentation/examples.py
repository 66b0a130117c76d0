"""Images with label maps as batches: changed at random for training, whole for evaluation."""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from natjax.train.cluster.processes import Host
from natjax.train.config.settings import DataConfig
from natjax.train.data.pipeline import Batch, Batches
from natjax.train.data.readable import Readable
from natjax.train.data.resize import Size, fitted_size, resize_image
from natjax.train.engine.task import Stages
from natjax.train.tasks.segmentation.augment import augment
from natjax.train.tasks.segmentation.config import AugmentConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps, PairSource
from natjax.train.tasks.segmentation.pairs import decode_pair, encoded_size
from natjax.train.tasks.segmentation.transforms import IGNORE


@dataclasses.dataclass(frozen=True)
class DecodePair:
    """Decodes and checks a record; a class, since worker processes receive it pickled.

    Attributes:
      classes: Number of classes.
      zero_is_nothing: As in `LabelMaps`.
    """

    classes: int
    zero_is_nothing: bool

    def __call__(self, record: dict[str, Any], name: str) -> dict[str, Any]:
        """Return ``image`` and ``label`` as pixels."""
        return decode_pair(record, name, self.classes, zero_is_nothing=self.zero_is_nothing)


def readable(source: PairSource, maps: LabelMaps, split: str) -> Readable:
    """Return records that are decoded, with what cannot be read passed over and named."""
    decode = DecodePair(len(maps.class_names), maps.zero_is_nothing)
    return Readable(source, decode, split)


@dataclasses.dataclass(frozen=True)
class TrainExample:
    """Makes a training example of a decoded record.

    Attributes:
      how: What is random about it.
    """

    how: AugmentConfig

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        """Return ``image`` and ``label``, uint8, and ``size``, the part that is not filled up."""
        example = augment(record["image"], record["label"], self.how, rng)
        return {
            "image": example.image,
            "label": example.labels,
            "size": np.asarray(example.size, np.int32),
        }


def input_stages(records: Readable, how: AugmentConfig, seed: int) -> Stages:
    """Return what is done with a training image, as `natjax.train.data.bench` times it."""
    example, rng = TrainExample(how), np.random.default_rng(seed)
    return {
        "read": records.source.__getitem__,
        "decode": lambda record: records.decode(record, ""),
        "change at random": lambda record: example(record, rng),
    }


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches of held-out images, each of images of one size, so that none is filled up.

    Attributes:
      records: The images.
      rows: Images of each batch by index; None where a row only fills up.
      sizes: Height and width of the images of each batch.
      how: The frame.
      scales: Factors of the frame.
      host: Which rows of each batch to make.
    """

    records: Readable
    rows: tuple[tuple[int | None, ...], ...]
    sizes: tuple[Size, ...]
    how: AugmentConfig
    scales: tuple[float, ...]
    host: Host

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """Return the host's rows of a batch.

        ``image0``, ``image1``, ... are the images at each scale, ``label`` the label maps at their
        own size; ``mask`` and ``id`` as every evaluation batch has them.
        """
        rows = self.rows[index]
        part = len(rows) // self.host.count
        own = rows[self.host.index * part : (self.host.index + 1) * part]
        made = [self._row(row, self.sizes[index]) for row in own]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _row(self, index: int | None, size: Size) -> Batch:
        record = None if index is None else self.records.get(index)
        if record is None:
            image, label = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE, np.uint8)
        else:
            image, label = record["image"], record["label"]
        views = view_at_scales(image, self.how, self.scales)
        return views | {
            "label": label,
            "mask": np.bool_(record is not None),
            "id": np.int32(-1 if index is None else index),
        }


def view_at_scales(image: np.ndarray, how: AugmentConfig, scales: Sequence[float]) -> Batch:
    """Return ``image0``, ``image1``, ...: an image as evaluation sees it, at each scale."""
    frames = [(int(how.frame[0] * scale), int(how.frame[1] * scale)) for scale in scales]
    return {
        f"image{i}": resize_image(image, fitted_size(image.shape[:2], frame))
        for i, frame in enumerate(frames)
    }


def eval_batches(
    records: Readable,
    how: AugmentConfig,
    scales: tuple[float, ...],
    reading: DataConfig,
    *,
    batch_size: int,
    devices: int,
    host: Host,
) -> Batches:
    """Return batches that hold every held-out image once.

    Where images are of several sizes a batch has one for each device, since there are few of each
    size, and what fills up a batch costs as much as images.

    Args:
      records: The images.
      how: The frame that evaluation fits images into.
      scales: Factors of the frame.
      reading: How many threads and workers.
      batch_size: Rows of a batch, over all hosts, where all images are of one size.
      devices: Rows of a batch where they are not.
      host: Which rows this process makes.
    """
    by_size: dict[Size, list[int]] = {}
    for index, size in enumerate(_sizes(records)):
        by_size.setdefault(size, []).append(index)
    count = batch_size if len(by_size) == 1 else devices
    rows, sizes = [], []
    for size, indices in by_size.items():
        for start in range(0, len(indices), count):
            chosen = indices[start : start + count]
            rows.append((*chosen, *[None] * (count - len(chosen))))
            sizes.append(size)
    batches = EvalBatches(records, tuple(rows), tuple(sizes), how, scales, host)
    return Batches(grain.MapDataset.source(batches), reading)


def _sizes(records: Readable) -> list[Size]:
    """Height and width of every image; an unreadable one goes with the first that can be read."""

    def size(index: int) -> Size | None:
        try:
            return encoded_size(records.source[index])
        except Exception:  # named when its turn comes
            return None

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(size, range(len(records))))
    first = next((one for one in found if one is not None), (1, 1))
    return [first if one is None else one for one in found]
