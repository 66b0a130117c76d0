"""Handwritten digits and photographs to paste them on: real pictures, with no download.

scikit-learn carries both: two photographs (427 x 640) and 1797 digits of 8 x 8 pixels. Held-out
pictures show digits and parts of photographs that training never sees: every fifth digit, and the
right third of both photographs.
"""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

_DARKENED = 0.6
_DIMMEST_INK = 160


def photo_part(
    split: str, rng: np.random.Generator, *, sides: tuple[int, int], size: int
) -> UInt8[np.ndarray, "S S 3"]:
    """Return a square part of a photograph, darkened.

    Args:
      split: ``"train"`` or ``"val"``.
      rng: Source of the draws.
      sides: Shortest and longest side of the part.
      size: Side that it is resized to.
    """
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    border = photo.shape[1] * 2 // 3
    photo = photo[:, border:] if split == "val" else photo[:, :border]
    side = int(rng.integers(sides[0], sides[1] + 1))
    top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
    part = photo[top : top + side, left : left + side]
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
    return np.rint(_DARKENED * part).astype(np.uint8)


@functools.cache
def digits(split: str) -> tuple[Float32[np.ndarray, "N 8 8"], Int64[np.ndarray, " N"]]:
    """Return the ink of the digits of a split, in [0, 1], and which digits they are."""
    from sklearn.datasets import load_digits

    ink, classes = load_digits(return_X_y=True)
    held_out = np.arange(len(classes)) % 5 == 0
    chosen = held_out if split == "val" else ~held_out
    return (ink[chosen].reshape(-1, 8, 8) / 16).astype(np.float32), classes[chosen]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where on a scene a digit is drawn.

    Attributes:
      rows: Rows of the scene.
      columns: Columns of the scene.
    """

    rows: slice
    columns: slice


def draw_place(rng: np.random.Generator, *, sides: tuple[int, int], size: int) -> Place:
    """Draw a square.

    Args:
      rng: Source of the draws.
      sides: Its shortest and longest side.
      size: Side of the scene that it lies in.
    """
    side = int(rng.integers(sides[0], sides[1] + 1))
    top, left = (int(rng.integers(size - side + 1)) for _ in range(2))
    return Place(slice(top, top + side), slice(left, left + side))


def enlarged(ink: Float32[np.ndarray, "8 8"], place: Place) -> Float32[np.ndarray, "S S"]:
    """Return the ink of a digit at the size of a place; from one half on, a pixel is of it."""
    side = place.rows.stop - place.rows.start
    return cv2.resize(ink, (side, side), interpolation=cv2.INTER_CUBIC)


def is_ink(large: Float32[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
    """Return which pixels are of a digit."""
    return large >= 0.5


def draw_digit(
    image: UInt8[np.ndarray, "_ _ 3"],
    large: Float32[np.ndarray, "S S"],
    place: Place,
    rng: np.random.Generator,
) -> None:
    """Draw a digit onto a scene, in place, in a bright colour of its own.

    Args:
      image: The scene.
      large: As `enlarged` returns it.
      place: Where.
      rng: Source of the colour.
    """
    color = rng.uniform(_DIMMEST_INK, 255, 3)
    where = (place.rows, place.columns)
    # From nothing to full colour over the edge of the ink, so that edges are soft.
    share = np.clip(2 * large - 0.5, 0, 1)[:, :, None]
    image[where] = np.rint(share * color + (1 - share) * image[where]).astype(np.uint8)


@functools.cache
def _photos() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image, np.uint8) for image in load_sample_images().images)
