"""What defines a run of segmentation. Nothing heavy is imported here."""

import dataclasses

from natjax.train.config.settings import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationAugment:
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
class LabelMapsConfig(DataConfig):
    """The images with label maps and how they are seen.

    Attributes:
      window: Evaluation: side of a sliding window; None sees images whole, as published.
      stride: Evaluation: pixels between windows.
      scales: Evaluation: factors of the frame over which probabilities are averaged.
      flip: Evaluation: average over mirror images, too.
    """

    name: str = "label_maps"
    window: int | None = None
    stride: int = 341
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
