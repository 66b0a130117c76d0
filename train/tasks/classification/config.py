"""Settings of classification: those of every run, and the network, the data, what is random."""

import dataclasses
import math
from typing import ClassVar, Literal

from natjax.train.config.continuing import FIXED, Rules
from natjax.train.config.rules import require
from natjax.train.config.settings import (
    DataConfig,
    ModelConfig,
    RunConfig,
    check_data,
    check_model,
)
from natjax.train.tasks.classification.policy import parse_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig(DataConfig):
    """The labelled images and how they are seen.

    Attributes:
      classes: Names of the classes of an image folder; found in it where not given.
      image_size: Side of the square images given to the network, in pixels.
      crop_pct: Evaluation: side of the central crop, in units of the resized short side.
      eval_interpolation: Evaluation: how images are resized.
    """

    classes: tuple[str, ...] = ()
    image_size: int = 32
    crop_pct: float = 1.0
    eval_interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup and CutMix: blends each image, and its target, with that of another.

    One draw a batch, for all devices and hosts; the partner is the batch in reverse order.

    Attributes:
      mixup_alpha: Of Beta(alpha, alpha), from which the share of the own image is drawn; 0: never.
      cutmix_alpha: The same for CutMix, which pastes a box of the partner; 0: never.
      prob: Chance that a batch is mixed at all.
      switch_prob: Chance of CutMix where both are on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    @property
    def enabled(self) -> bool:
        """Whether any batch is mixed."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseConfig:
    """Random erasing: boxes filled after normalisation, in the mixed images.

    Attributes:
      prob: Chance that an image is erased.
      mode: Standard normal noise for each pixel, one such colour a box, or zero (the mean colour).
      count: Most boxes an image: from one to so many, evenly drawn, which share the area.
      area: Smallest and largest part of the image.
      aspect: Smallest and largest height over width, drawn evenly in the logarithm.
    """

    prob: float = 0.0
    mode: Literal["pixel", "color", "zero"] = "pixel"
    count: int = 1
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, in the order of the attributes.

    The last two are done on the devices, all others where images are decoded.

    Attributes:
      crop: A random part resized to the whole ("resized"), a move by a few pixels ("shift") or
        the view of evaluation ("none").
      scale: Smallest and largest area of a resized crop, as a part of the image.
      ratio: Its smallest and largest width over height, drawn evenly in the logarithm.
      interpolation: How it is resized; "random" draws bilinear or bicubic for each image. Turned
        images (RandAugment) are sampled likewise.
      shift: Largest move of "shift" along each axis, in pixels; black comes in.
      hflip: Chance of a mirror image.
      rand_augment: RandAugment, such as rand-m9-mstd0.5-inc1: magnitude 9 of 10 with standard
        deviation 0.5, and operations that get stronger with it.
      color_jitter: Brightness, contrast and saturation change by factors up to 1 +- this. Only
        where `rand_augment` is None, as in timm.
      mix: Mixup and CutMix.
      erase: Random erasing.
    """

    crop: Literal["resized", "shift", "none"] = "none"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    shift: int = 0
    hflip: float = 0.0
    rand_augment: str | None = None
    color_jitter: float = 0.0
    mix: MixConfig = MixConfig()
    erase: EraseConfig = EraseConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationConfig(RunConfig):
    """A run of classification.

    Attributes:
      model: The network.
      data: The data set.
      augment: Random changes of the training images.
      label_smoothing: Share of the target that is spread over all classes, in [0, 1).
    """

    CONTINUING: ClassVar[Rules] = {
        **RunConfig.CONTINUING,
        "augment": FIXED,
        "label_smoothing": FIXED,
    }

    data: ImagesConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augment: AugmentConfig = AugmentConfig()
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Check every rule that needs no data and no device.

        Raises:
          UserError: names the setting, its rule and its value.
        """
        super().__post_init__()
        check_model(self.model, self.init)
        check_data(self.data)
        smoothing, data = self.label_smoothing, self.data
        require("label_smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)")
        require("data.image_size", data.image_size, data.image_size >= 1, "at least 1")
        require("data.crop_pct", data.crop_pct, 0 < data.crop_pct <= 1, "in (0, 1]")
        _check_augment(self.augment)


def _check_augment(augment: AugmentConfig) -> None:
    for name, chance in (
        ("hflip", augment.hflip),
        ("mix.prob", augment.mix.prob),
        ("mix.switch_prob", augment.mix.switch_prob),
        ("erase.prob", augment.erase.prob),
    ):
        require(f"augment.{name}", chance, 0 <= chance <= 1, "in [0, 1]")
    for name, number in (
        ("shift", augment.shift),
        ("color_jitter", augment.color_jitter),
        ("mix.mixup_alpha", augment.mix.mixup_alpha),
        ("mix.cutmix_alpha", augment.mix.cutmix_alpha),
    ):
        require(f"augment.{name}", number, number >= 0, "at least 0")
    for name, (low, high), most in (
        ("scale", augment.scale, 1.0),
        ("ratio", augment.ratio, math.inf),
        ("erase.area", augment.erase.area, 1.0),
        ("erase.aspect", augment.erase.aspect, math.inf),
    ):
        rule = f"two numbers, 0 < low <= high{' <= 1' if most == 1 else ''}"
        require(f"augment.{name}", (low, high), 0 < low <= high <= most, rule)
    count = augment.erase.count
    require("augment.erase.count", count, count >= 1, "at least 1")
    if augment.rand_augment is not None:
        parse_policy(augment.rand_augment)
