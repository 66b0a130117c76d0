"""Settings of detection: those of every run, and the network, the data, what is random."""

import dataclasses
from typing import ClassVar

from natjax.train.config.continuing import FIXED, Rule, Rules
from natjax.train.config.rules import require
from natjax.train.config.settings import (
    DataConfig,
    ModelConfig,
    RunConfig,
    check_data,
    check_model,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectsConfig(DataConfig):
    """The images with objects.

    Attributes:
      name: Data in COCO's format, such as COCO itself ("coco"); COCO's images as TFDS has prepared
        them, with the official annotations ("coco/2017"); digits on photographs ("digit_scenes").
      objects: Objects of an image that are trained on at most, the first ones of it.
      least_padding: Evaluation: fill images up to multiples of 32 only, as the published detectors
        were measured. There is then a program for each of some dozens of sizes.
    """

    name: str = "coco"
    objects: int = 100
    least_padding: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Sizes of images, and random changes of the training images.

    Attributes:
      frame: Two lengths in pixels: evaluation fits an image into them, its longer side into the
        longer one. The longer one bounds training images as well.
      sides: Shorter sides of training images, of which one is drawn.
      crop: Chance that a part of a training image is cut out first.
      crop_sides: Shorter sides, of which one is drawn, of the image that is cut.
      crop_range: Shortest and longest side of the part.
      hflip: Chance of a mirror image.
      buckets: Shorter and longer side of the sizes that batches are padded to, wide or tall: there
        is a program for each that occurs. A batch gets the smallest that holds its images.
    """

    frame: tuple[int, int] = (1333, 800)
    sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    crop: float = 0.5
    crop_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    hflip: float = 0.5
    buckets: tuple[tuple[int, int], ...] = ((640, 1024), (800, 1216), (800, 1344))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionConfig(RunConfig):
    """A run of detection.

    Attributes:
      model: The network, a detector.
      data: The data set.
      augment: Sizes of images, and random changes of the training images.
    """

    CONTINUING: ClassVar[Rules] = {
        **RunConfig.CONTINUING,
        "data.least_padding": Rule(accepted=True, effect="scores may differ a little"),
        "augment": FIXED,
    }

    data: ObjectsConfig = ObjectsConfig()
    model: ModelConfig = dataclasses.field(
        default_factory=lambda: ModelConfig(name="mask_rcnn_nat_tiny")
    )
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        """Check every rule that needs no data and no device.

        Raises:
          UserError: names the setting, its rule and its value.
        """
        super().__post_init__()
        check_model(self.model, self.init)
        check_data(self.data)
        require("data.objects", self.data.objects, self.data.objects >= 1, "at least 1")
        _check_augment(self.augment)


def _check_augment(augment: AugmentConfig) -> None:
    require("augment.frame", augment.frame, min(augment.frame) >= 1, "two lengths from 1")
    for name in ("sides", "crop_sides"):
        sides = getattr(augment, name)
        some = bool(sides) and min(sides) >= 1
        require(f"augment.{name}", sides, some, "one length or more, all from 1")
    low, high = augment.crop_range
    require("augment.crop_range", augment.crop_range, 1 <= low <= high, "1 <= low <= high")
    for name in ("crop", "hflip"):
        chance = getattr(augment, name)
        require(f"augment.{name}", chance, 0 <= chance <= 1, "in [0, 1]")
    _check_buckets(augment)


def _check_buckets(augment: AugmentConfig) -> None:
    buckets = augment.buckets
    wide = all(side >= 32 and side % 32 == 0 for sides in buckets for side in sides)
    require("augment.buckets", buckets, bool(buckets) and wide, "pairs of multiples of 32")
    short, long = max(*augment.sides, min(augment.frame)), max(augment.frame)
    holds = any(min(sides) >= short and max(sides) >= long for sides in buckets)
    require("augment.buckets", buckets, holds, f"such that one holds images of {short} x {long}")
