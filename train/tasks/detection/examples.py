"""Images with objects as batches: changed at random for training, as they are for evaluation.

Training batches have ``image`` uint8 [B, H, W, 3], ``size`` int32 [B, 2], ``boxes`` float32
[B, G, 4], ``label`` int32 [B, G], ``valid`` bool [B, G] and ``masks`` uint8 [B, G, H, W / 8], eight
pixels a byte along the width with the leftmost in the highest bit. Evaluation batches have
``image``, ``size``, ``scale`` float32 [B, 2], ``id`` int32 [B] and ``mask`` bool [B]. Images are
filled up with 0 on the right and below, to one of a few sizes.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int64, UInt8

from natjax.train import console
from natjax.train.cluster.processes import Host
from natjax.train.data.pipeline import Batch, Batches, read
from natjax.train.data.readable import Readable
from natjax.train.data.resize import Size, fitted_size, resize_image
from natjax.train.engine.task import Stages
from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import AugmentConfig, DetectionConfig
from natjax.train.tasks.detection.datasets.registry import Split
from natjax.train.tasks.detection.transforms import (
    Plan,
    Scale,
    bucket_of,
    draw_plan,
    draw_scale,
    is_wide,
    least_size,
    move_boxes,
    move_image,
    move_mask,
    ratios,
    within,
)

# Training passes over images with a shorter side, as mmdetection.
_SHORTEST = 32
# Strides of a detector go up to this, in pixels.
STRIDE = 32


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some images of a split, as records.

    Attributes:
      split: The split.
      rows: Which of its images.
    """

    split: Split
    rows: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return ``image``, and ``index`` of the image in the split."""
        return self.split[int(self.rows[place])]

    def name(self, place: int) -> str:
        """Return what to call an image in messages."""
        return self.split.name(int(self.rows[place]))

    def size(self, place: int) -> Size:
        """Return height and width of an image, without reading it."""
        info = self.split.info(int(self.rows[place]))
        return info.height, info.width


def _as_read(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Records are decoded as they are read, since their size is then compared."""
    del name
    return record


def train_records(split: Split) -> Readable:
    """Return the images that training takes: those with objects, and not too small.

    ``len`` is the number of examples of an epoch.

    Raises:
      UserError: there is none.
    """
    sizes = split.annotations.sizes
    chosen = np.flatnonzero((_object_counts(split) > 0) & (sizes.min(axis=1) >= _SHORTEST))
    if not len(chosen):
        raise UserError(
            f"{split.dataset} must have images to train on, with objects and sides from {_SHORTEST}"
            f" pixels; none of its {len(split)} images is one"
        )
    return Readable(Subset(split, chosen), _as_read, "training")


def _object_counts(split: Split) -> Int64[np.ndarray, " I"]:
    """How many objects of each image training takes."""
    rows = split.annotations
    before = np.concatenate([[0], np.cumsum(rows.trained)])
    return before[rows.first[1:]] - before[rows.first[:-1]]


def eval_records(split: Split) -> Readable:
    """Return all images, with what cannot be read passed over and named."""
    return Readable(Subset(split, np.arange(len(split))), _as_read, "held-out")


def _subset(records: Readable) -> Subset:
    assert isinstance(records.source, Subset)
    return records.source


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Training batches by step, each of wide images or of tall ones, of about one size.

    Attributes:
      records: As `train_records` has them.
      wide: Places of the images that are wider than high.
      tall: Places of the others.
      config: The run.
      host: Which rows of each batch to make.
    """

    records: Readable
    wide: Int64[np.ndarray, " L"]
    tall: Int64[np.ndarray, " P"]
    config: DetectionConfig
    host: Host

    def __len__(self) -> int:
        return sys.maxsize  # no end

    def __getitem__(self, step: int) -> Batch:
        """Return the host's rows of a batch, a function of seed and step."""
        how, rows = self.config.augment, self.config.batch_size
        scale = draw_scale(how, np.random.default_rng((self.config.seed, step)))
        places = self._places(step)
        plans = [self._plan(self._size(place), scale, step, i) for i, place in enumerate(places)]
        bucket = bucket_of([plan.final for plan in plans], how.buckets)
        part = rows // self.host.count
        own = range(self.host.index * part, (self.host.index + 1) * part)
        made = [self._row(places[i], plans[i], scale, bucket, step, i) for i in own]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _places(self, step: int) -> list[int]:
        """Images of a batch; both groups take turns in proportion, each in an order of its own."""
        share, total = len(self.wide), len(self.wide) + len(self.tall)
        before = step * share // total
        is_wide_turn = (step + 1) * share // total > before
        group, number = (self.wide, before) if is_wide_turn else (self.tall, step - before)
        rows = self.config.batch_size
        wanted = np.arange(number * rows, (number + 1) * rows)
        epochs, within_epoch = np.divmod(wanted, len(group))
        orders = {
            e: _order(self.config.seed, is_wide_turn, e, len(group)) for e in set(epochs.tolist())
        }
        chosen = [orders[e][i] for e, i in zip(epochs.tolist(), within_epoch, strict=True)]
        return group[np.array(chosen)].tolist()

    def _size(self, place: int) -> Size:
        return _subset(self.records).size(place)

    def _plan(self, size: Size, scale: Scale, step: int, row: int) -> Plan:
        rng = np.random.default_rng((self.config.seed, step, row))
        return draw_plan(size, scale, self.config.augment, rng)

    def _row(
        self, place: int, plan: Plan, scale: Scale, bucket: Size, step: int, row: int
    ) -> Batch:
        record = self.records[place]
        image = record["image"]
        if image.shape[:2] != plan.size:  # another took the place of one that cannot be read
            plan = self._plan(image.shape[:2], scale, step, row)
            plan = dataclasses.replace(plan, final=within(plan.final, bucket))
        return self.changed(record, plan, bucket)

    def changed(self, record: dict[str, Any], plan: Plan, bucket: Size) -> Batch:
        """Return the row of an image that was read, changed as planned."""
        objects = _subset(self.records).split.objects(record["index"])
        return {
            "image": padded(move_image(record["image"], plan), bucket),
            "size": np.array(plan.final, np.int32),
            **self._objects(objects.take(objects.trained), plan, bucket),
        }

    def _objects(self, objects: Any, plan: Plan, bucket: Size) -> Batch:
        """Objects in a fixed number of slots."""
        slots = self.config.data.objects
        boxes, here = move_boxes(objects.boxes, plan)
        kept = np.flatnonzero(here)[:slots]
        row = {
            "boxes": np.zeros((slots, 4), np.float32),
            "label": np.zeros(slots, np.int32),
            "valid": np.arange(slots) < len(kept),
            "masks": np.zeros((slots, bucket[0], bucket[1] // 8), np.uint8),
        }
        row["boxes"][: len(kept)] = boxes[kept]
        row["label"][: len(kept)] = objects.labels[kept]
        for slot, number in enumerate(kept.tolist()):
            bits = np.packbits(move_mask(objects.mask(number), plan), axis=1)
            row["masks"][slot, : bits.shape[0], : bits.shape[1]] = bits
        return row


@functools.lru_cache(maxsize=8)
def _order(seed: int, is_wide_turn: bool, epoch: int, count: int) -> Int64[np.ndarray, " N"]:
    """The order of the images of a group in an epoch."""
    return np.random.default_rng((seed, int(is_wide_turn), epoch, count)).permutation(count)


def padded(image: UInt8[np.ndarray, "_ _ 3"], size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image filled up with 0 on the right and below."""
    full = np.zeros((*size, 3), np.uint8)
    full[: image.shape[0], : image.shape[1]] = image
    return full


def train_batches(
    records: Readable, config: DetectionConfig, start: int, host: Host
) -> Iterator[Batch]:
    """Iterate over training batches from a step on, without end.

    Args:
      records: As `train_records` has them.
      config: The run.
      start: Steps done.
      host: Which rows this process makes.
    """
    source, slots = _subset(records), config.data.objects
    many = np.count_nonzero(_object_counts(source.split)[source.rows] > slots)
    if many:
        console.warn(
            f"{many} training images have more than {slots} objects; the first {slots} of each are"
            " taken. A larger --data.objects takes more, and more memory"
        )
    batches = _train_batches(records, config, host)
    return read(grain.MapDataset.source(batches), config.data, start)


def _train_batches(records: Readable, config: DetectionConfig, host: Host) -> TrainBatches:
    source = _subset(records)
    sizes = source.split.annotations.sizes[source.rows]
    are_wide = np.array([is_wide((height, width)) for height, width in sizes.tolist()])
    wide, tall = np.flatnonzero(are_wide), np.flatnonzero(~are_wide)
    return TrainBatches(records, wide, tall, config, host)


def input_stages(records: Readable, config: DetectionConfig) -> Stages:
    """Return what is done with a training image, as `natjax.train.data.bench` times it."""
    batches, how = _train_batches(records, config, Host()), config.augment
    rng = np.random.default_rng(config.seed)

    def changed(record: dict[str, Any]) -> Batch:
        plan = draw_plan(record["image"].shape[:2], draw_scale(how, rng), how, rng)
        return batches.changed(record, plan, bucket_of([plan.final], how.buckets))

    return {"read and decode": _subset(records).__getitem__, "change at random": changed}


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches of held-out images, each of images that are filled up to one size.

    Attributes:
      records: As `eval_records` has them.
      rows: Images of each batch by index; None where a row only fills up.
      sizes: Height and width of each batch.
      how: The frame.
      host: Which rows of each batch to make.
    """

    records: Readable
    rows: Sequence[tuple[int | None, ...]]
    sizes: Sequence[Size]
    how: AugmentConfig
    host: Host

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """Return the host's rows of a batch."""
        rows = self.rows[index]
        part = len(rows) // self.host.count
        own = rows[self.host.index * part : (self.host.index + 1) * part]
        made = [self._row(row, self.sizes[index]) for row in own]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _row(self, index: int | None, size: Size) -> Batch:
        record = None if index is None else self.records.get(index)
        if record is None:
            seen = _view(np.zeros((1, 1, 3), np.uint8), size, size)
        else:
            image = record["image"]
            seen = _view(image, fitted_size(image.shape[:2], self.how.frame), size)
        return seen | {
            "mask": np.bool_(record is not None),
            "id": np.int32(-1 if index is None else index),
        }


def eval_batches(
    records: Readable, config: DetectionConfig, devices: int, host: Host
) -> Iterable[Batch]:
    """Return batches that hold every held-out image once.

    Args:
      records: As `eval_records` has them.
      config: The run.
      devices: Rows of a batch where images are filled up as little as can be, since there are then
        few of each size.
      host: Which rows this process makes.
    """
    source, how = _subset(records), config.augment
    by_size: dict[Size, list[int]] = {}
    for place in range(len(source)):
        seen = fitted_size(source.size(place), how.frame)
        by_size.setdefault(_eval_size(seen, config), []).append(place)
    count = devices if config.data.least_padding else config.batch_size
    rows, sizes = [], []
    for size, places in sorted(by_size.items()):
        for start in range(0, len(places), count):
            chosen = places[start : start + count]
            rows.append((*chosen, *[None] * (count - len(chosen))))
            sizes.append(size)
    batches = EvalBatches(records, rows, sizes, how, host)
    return Batches(grain.MapDataset.source(batches), config.data)


def _eval_size(seen: Size, config: DetectionConfig) -> Size:
    if config.data.least_padding:
        return least_size(seen, STRIDE)
    return bucket_of([seen], config.augment.buckets)


def view(image: UInt8[np.ndarray, "_ _ 3"], how: AugmentConfig) -> Batch:
    """Return ``image``, ``size`` and ``scale`` of an image as evaluation sees it, without rows."""
    seen = fitted_size(image.shape[:2], how.frame)
    return _view(image, seen, bucket_of([seen], how.buckets))


def _view(image: UInt8[np.ndarray, "_ _ 3"], seen: Size, size: Size) -> Batch:
    return {
        "image": padded(resize_image(image, seen), size),
        "size": np.array(seen, np.int32),
        "scale": ratios(image.shape[:2], seen),
    }
