"""What a model says of an image, drawn onto it: tints of classes, and objects with their names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

NOTHING = 255
"""The label of pixels that are of no class."""

_SHARE = 0.6
_MASK_SHARE = 0.45
# The first colour, a quiet one: the first class is often what lies behind all others.
_FIRST = (208, 212, 216)
# What cannot be told from black, which is no label, or from the white of the page is left out.
_LIGHTNESS = (30, 85)


@functools.cache
def class_colors(classes: int) -> UInt8[np.ndarray, "L 3"]:
    """A colour for each class: light gray, then each as far from all before as can be.

    Distances are those of the CIELAB space, in which they say how different colours look.
    """
    steps = np.linspace(0, 255, 18).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    seen = _lab(grid)
    low, high = _LIGHTNESS
    grid = grid[(low <= seen[:, 0]) & (seen[:, 0] <= high)]
    seen = _lab(grid)
    colors = [np.array(_FIRST)]
    nearest = np.full(len(grid), np.inf)
    while len(colors) < classes:
        nearest = np.minimum(nearest, np.linalg.norm(seen - _lab(colors[-1][None]), axis=-1))
        colors.append(grid[nearest.argmax()])
    return np.stack(colors[:classes]).astype(np.uint8)


def _lab(colors: np.ndarray) -> np.ndarray:
    """Colours of sRGB, 0 to 255, in CIELAB."""
    import cv2  # of the extra natjax[dense]

    return cv2.cvtColor(np.float32(colors)[None] / 255, cv2.COLOR_RGB2LAB)[0]


def paint(
    labels: Integer[np.ndarray, "H W"], colors: UInt8[np.ndarray, "L 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Label maps in the colours of their classes; what has no label is black."""
    table = np.zeros((NOTHING + 1, 3), np.uint8)
    table[: len(colors)] = colors
    return table[labels]


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "H W"],
    colors: UInt8[np.ndarray, "L 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """An image tinted in the colours of its classes; what has no label stays as it is."""
    tint = _SHARE * paint(labels, colors) + (1 - _SHARE) * image
    return np.where((labels == NOTHING)[:, :, None], image, np.rint(tint).astype(np.uint8))


def draw_objects(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "N 4"],
    labels: Integer[np.ndarray, "N"],
    class_names: Sequence[str],
    *,
    masks: Bool[np.ndarray, "N H W"] | None = None,
    scores: Float[np.ndarray, "N"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """An image with its objects: tinted masks, boxes, names and scores, in colours of the classes.

    Args:
      image: pixels.
      boxes: corners, in pixels; the first object is drawn last, above the others.
      labels: class of each object.
      class_names: name of each class.
      masks: pixels of each object; None draws none.
      scores: in [0, 1]; None writes names alone.
    """
    from PIL import Image, ImageDraw

    # All but the first, which is for what lies behind.
    colors = class_colors(len(class_names) + 1)[1:][labels]
    last_first = range(len(boxes) - 1, -1, -1)
    pixels = image.astype(np.float32)
    if masks is not None:
        for i in last_first:
            pixels[masks[i]] += _MASK_SHARE * (colors[i] - pixels[masks[i]])
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for i in last_first:
        words = class_names[labels[i]]
        words += "" if scores is None else f" {scores[i]:.0%}"
        _draw_box(pen, picture.size, boxes[i], words, tuple(colors[i].tolist()))
    return np.asarray(picture)


def _draw_box(
    pen: Any, size: tuple[int, int], box: np.ndarray, words: str, color: tuple[int, int, int]
) -> None:
    """Draw a frame, and its words on a bar above it, or inside where there is no room."""
    from PIL import ImageFont

    thickness = max(1, round(min(size) / 200))
    left, top, right, bottom = np.clip(box, 0, np.tile(size, 2) - 1).tolist()
    pen.rectangle((left, top, right, bottom), outline=color, width=thickness)
    font = ImageFont.load_default(8 + min(size) / 50)
    # The words' own box reaches from 0, so that bars of all words are equally high.
    width, height = pen.textlength(words, font=font), sum(font.getmetrics())
    x = max(0.0, min(left, size[0] - width))
    y = top - height if top >= height else top
    pen.rectangle((x, y, x + width, y + height), fill=color)
    is_bright = np.dot(color, (0.299, 0.587, 0.114)) > 140
    pen.text((x, y), words, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font)
