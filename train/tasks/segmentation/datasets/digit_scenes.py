"""Handwritten digits pasted onto photographs: real pictures with exact label maps, no download.

scikit-learn carries both: two photographs (427 x 640) and 1797 digits of 8 x 8 pixels. A scene is
a part of a photograph, darkened, with one or two digits on it, each enlarged and in a bright colour
of its own. A pixel is of a digit's class where the enlarged ink is at least half as dark as the
darkest, else it is of class ``photo``. Digits may cover each other; the later one wins.

Held-out scenes show digits and parts of photographs that training never sees: every fifth digit,
and the right third of both photographs.
"""

import dataclasses
import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps

SIDE = 64
_COUNTS = {"train": 4000, "val": 400}
_STREAMS = {"train": 0, "val": 1}
_DIGITS = (1, 2)
_DIGIT_SIDE = (28, 44)
_PART_SIDE = (64, 160)
_DARKENED = 0.6
_DIMMEST_INK = 160


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes of a split, each a function of its index."""

    split: str

    def __len__(self) -> int:
        return _COUNTS[self.split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image``, uint8 [64, 64, 3], and ``label``, uint8 [64, 64]."""
        rng = np.random.default_rng((_STREAMS[self.split], index))
        image = _part_of_a_photo(self.split, rng)
        label = np.zeros(image.shape[:2], np.uint8)
        pictures, classes = _digits(self.split)
        for _ in range(rng.integers(_DIGITS[0], _DIGITS[1] + 1)):
            chosen = rng.integers(len(classes))
            _paste(image, label, pictures[chosen], int(classes[chosen]) + 1, rng)
        return {"image": image, "label": label}

    def name(self, index: int) -> str:
        """Return what to call a scene."""
        return f"{self.split} scene {index}"


def get_label_maps(_: LabelMapsConfig) -> LabelMaps:
    """Return the data set."""
    return LabelMaps(name="digit_scenes", class_names=("photo", *map(str, range(10))), open=Scenes)


@functools.cache
def _photos() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image, np.uint8) for image in load_sample_images().images)


@functools.cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ink of the digits of a split, in [0, 1], and what they are."""
    from sklearn.datasets import load_digits

    ink, classes = load_digits(return_X_y=True)
    held_out = np.arange(len(classes)) % 5 == 0
    chosen = held_out if split == "val" else ~held_out
    return (ink[chosen].reshape(-1, 8, 8) / 16).astype(np.float32), classes[chosen]


def _part_of_a_photo(split: str, rng: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    border = photo.shape[1] * 2 // 3
    photo = photo[:, border:] if split == "val" else photo[:, :border]
    side = int(rng.integers(_PART_SIDE[0], _PART_SIDE[1] + 1))
    top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
    part = photo[top : top + side, left : left + side]
    part = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.rint(_DARKENED * part).astype(np.uint8)


def _paste(
    image: np.ndarray,
    label: np.ndarray,
    ink: Float[np.ndarray, "8 8"],
    number: int,
    rng: np.random.Generator,
) -> None:
    """Draw a digit onto a scene and its label map, in place."""
    side = int(rng.integers(_DIGIT_SIDE[0], _DIGIT_SIDE[1] + 1))
    top, left = (int(rng.integers(SIDE - side + 1)) for _ in range(2))
    large = cv2.resize(ink, (side, side), interpolation=cv2.INTER_CUBIC)
    place = (slice(top, top + side), slice(left, left + side))
    color = rng.uniform(_DIMMEST_INK, 255, 3)
    # From nothing to full colour over the edge of the ink, so that edges are soft.
    share = np.clip(2 * large - 0.5, 0, 1)[:, :, None]
    image[place] = np.rint(share * color + (1 - share) * image[place]).astype(np.uint8)
    label[place] = np.where(large >= 0.5, number, label[place])
