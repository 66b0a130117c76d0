"""From records of encoded files to pixels and labels, with everything checked."""

import io
from typing import Any

import numpy as np
from PIL import Image

from natjax.train.data.images import decode, open_encoded, to_pixels
from natjax.train.data.resize import Size
from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.transforms import IGNORE, Labels, without_zero


class LabelError(UserError):
    """A label map says what it cannot mean; unlike damage, that is never passed over."""


def decode_pair(
    record: dict[str, Any], name: str, classes: int, *, zero_is_nothing: bool
) -> dict[str, Any]:
    """Return ``image``, uint8 [H, W, 3] in RGB, and ``label``, uint8 [H, W].

    Args:
      record: Both, encoded or as pixels.
      name: What to call the record in messages.
      classes: Number of classes.
      zero_is_nothing: Whether 0 stands for no label, and classes count from 1.

    Raises:
      LabelError: the label map is of another size than the image, or has a label that is no class.
      Exception: an image is damaged; decoders raise nearly anything.
    """
    image, labels = record["image"], record["label"]
    if not isinstance(image, np.ndarray):
        image = to_pixels(decode(image, 3))
    if not isinstance(labels, np.ndarray):
        labels = decode_labels(labels, name)
    if labels.shape != image.shape[:2]:
        raise LabelError(
            f"the label map of {name} must be of the image's size,"
            f" {image.shape[1]} x {image.shape[0]}; got {labels.shape[1]} x {labels.shape[0]}"
        )
    return {"image": image, "label": checked_labels(labels, name, classes, zero_is_nothing)}


def decode_labels(data: bytes, name: str) -> Labels:
    """Decode a label map.

    Args:
      data: PNG of one channel of 8 bits; of a palette, the numbers count and not the colours.
      name: What to call it in messages.

    Raises:
      LabelError: it is a picture of another kind.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode not in ("L", "P", "1"):
            raise LabelError(
                f"the label map of {name} must have one channel of at most 8 bits; got a PNG of"
                f" mode {image.mode}"
            )
        return np.asarray(image).astype(np.uint8)


def checked_labels(labels: Labels, name: str, classes: int, zero_is_nothing: bool) -> Labels:
    """Return labels that count from 0, with `IGNORE` for no label.

    Raises:
      LabelError: a label that is no class; the message has the file and the number.
    """
    known = np.zeros(IGNORE + 1, bool)
    first = 1 if zero_is_nothing else 0
    known[first : first + classes] = True
    known[0 if zero_is_nothing else IGNORE] = True
    present = np.bincount(labels.ravel(), minlength=IGNORE + 1) > 0
    wrong = np.flatnonzero(present & ~known)
    if len(wrong):
        nothing = "0" if zero_is_nothing else str(IGNORE)
        raise LabelError(
            f"the label map of {name} has the label {wrong[0]}; labels must be in {first} to"
            f" {first + classes - 1}, or {nothing} for none"
        )
    return without_zero(labels) if zero_is_nothing else labels


def encoded_size(record: dict[str, Any]) -> Size:
    """Return height and width of a record's image, from its header alone."""
    image = record["image"]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with open_encoded(image) as opened:
        return opened.height, opened.width
