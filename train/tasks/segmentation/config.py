"""Settings of segmentation: those of every run, and the network, the data, what is random."""

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

_SCORES = Rule(accepted=True, effect="scores before and after are not comparable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelMapsConfig(DataConfig):
    """The images with label maps and how evaluation sees them.

    Attributes:
      name: A folder of images and label maps, or ADE20K's ("label_maps"); ADE20K as TFDS has
        prepared it ("scene_parse150"); digits on photographs ("digit_scenes").
      window: Evaluation: side of a sliding window; by default images are seen whole, as published.
      stride: Evaluation: pixels between windows.
      scales: Evaluation: factors of the frame over which probabilities are averaged.
      flip: Evaluation: average over mirror images, too.
    """

    name: str = "label_maps"
    window: int | None = None
    stride: int = 341
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, in the order of the attributes.

    Attributes:
      frame: Two lengths in pixels: an image is fitted into them, its longer side into the longer
        one. Evaluation fits images into the frame itself.
      scale: Smallest and largest factor of the frame.
      crop: Side of the square that is cut out; what is missing is filled up and ignored.
      category_limit: Part of a crop that its largest class must stay below; from 1 on, crops are
        taken as they come.
      hflip: Chance of a mirror image.
      distort: Whether brightness, contrast, saturation and hue change.
    """

    frame: tuple[int, int] = (2048, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    crop: int = 512
    category_limit: float = 0.75
    hflip: float = 0.5
    distort: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig(RunConfig):
    """A run of segmentation.

    Attributes:
      model: The network, a segmentor.
      data: The data set.
      augment: Random changes of the training images.
    """

    CONTINUING: ClassVar[Rules] = {
        **RunConfig.CONTINUING,
        "data.window": _SCORES,
        "data.stride": _SCORES,
        "data.scales": _SCORES,
        "data.flip": _SCORES,
        "augment": FIXED,
    }

    data: LabelMapsConfig = LabelMapsConfig()
    model: ModelConfig = dataclasses.field(
        default_factory=lambda: ModelConfig(name="upernet_nat_tiny")
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
        require("batch_size", self.batch_size, self.batch_size > 1, "at least 2, for the norms")
        parts = self.batch_size // self.accumulate
        require("accumulate", self.accumulate, parts > 1, "such that parts have 2 images or more")
        _check_view(self.data)
        _check_augment(self.augment)


def _check_view(data: LabelMapsConfig) -> None:
    window = data.stride if data.window is None else data.window
    require("data.window", data.window, window >= 1, "at least 1")
    require("data.stride", data.stride, data.stride >= 1, "at least 1")
    fits = data.window is None or data.stride <= data.window
    require("data.stride", data.stride, fits, f"at most data.window ({data.window})")
    some = bool(data.scales) and all(scale > 0 for scale in data.scales)
    require("data.scales", data.scales, some, "one number or more, all positive")


def _check_augment(augment: AugmentConfig) -> None:
    require("augment.frame", augment.frame, min(augment.frame) >= 1, "two lengths from 1")
    low, high = augment.scale
    require("augment.scale", augment.scale, 0 < low <= high, "two numbers, 0 < low <= high")
    require("augment.crop", augment.crop, augment.crop >= 1, "at least 1")
    limit = augment.category_limit
    require("augment.category_limit", limit, limit > 0, "positive")
    require("augment.hflip", augment.hflip, 0 <= augment.hflip <= 1, "in [0, 1]")
