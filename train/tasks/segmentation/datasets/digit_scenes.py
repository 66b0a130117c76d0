"""Handwritten digits pasted onto photographs: real pictures with exact label maps, no download.

A scene is a part of a photograph with one or two digits on it (`natjax.train.data.digits_on_photos`
has both, split by source). A pixel is of a digit's class where the enlarged ink is at least half as
dark as the darkest, else it is of class ``photo``. Digits may cover each other; the later one wins.
"""

import dataclasses
from typing import Any

import numpy as np

from natjax.train.data.digits_on_photos import (
    digits,
    draw_digit,
    draw_place,
    enlarged,
    is_ink,
    photo_part,
)
from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps

SIDE = 64
_COUNTS = {"train": 4000, "val": 400}
_STREAMS = {"train": 0, "val": 1}
_DIGITS = (1, 2)
_DIGIT_SIDES = (28, 44)
_PART_SIDES = (64, 160)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes of a split, each a function of its index."""

    split: str

    def __len__(self) -> int:
        return _COUNTS[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image``, uint8 [64, 64, 3], and ``label``, uint8 [64, 64]."""
        rng = np.random.default_rng((_STREAMS[self.split], index))
        image = photo_part(self.split, rng, sides=_PART_SIDES, size=SIDE)
        label = np.zeros(image.shape[:2], np.uint8)
        pictures, classes = digits(self.split)
        for _ in range(rng.integers(_DIGITS[0], _DIGITS[1] + 1)):
            chosen = rng.integers(len(classes))
            place = draw_place(rng, sides=_DIGIT_SIDES, size=SIDE)
            large = enlarged(pictures[chosen], place)
            draw_digit(image, large, place, rng)
            label[place.rows, place.columns][is_ink(large)] = classes[chosen] + 1
        return {"image": image, "label": label}

    def name(self, index: int) -> str:
        """Return what to call a scene."""
        return f"{self.split} scene {index}"


def get_label_maps(_: LabelMapsConfig) -> LabelMaps:
    """Return the data set."""
    return LabelMaps(name="digit_scenes", class_names=("photo", *map(str, range(10))), open=Scenes)
