"""Masks as COCO writes them: polygons, run lengths, and run lengths packed into a string.

pycocotools turns polygons into pixels, since its rule is what published detectors were trained and
measured with. It trusts its input, so everything is checked before it sees it.

Run lengths count pixels column by column, alternately outside and inside of the object. Packed, a
number is written in characters of 48 to 111, five bits each with the lowest first, the sixth set
where another follows; from the fourth number on it is the difference to the one two before.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from natjax.train.errors import UserError

Size = tuple[int, int]

_EXTRA = "detection needs pycocotools: pip install 'natjax[dense]'"
# Length in pixels of all outlines of an object, for which pycocotools takes 80 bytes a pixel.
_LONGEST_OUTLINE = 2_000_000


class MaskError(ValueError):
    """A mask that cannot be meant; the message says why."""


def pack_mask(segmentation: Any, size: Size) -> bytes:
    """Return the packed run lengths of a mask in an annotation.

    Args:
      segmentation: A list of polygons, each x1, y1, x2, y2, ... in pixels; or ``size`` and
        ``counts``, a list of run lengths or a string of packed ones.
      size: Height and width of the image.

    Raises:
      MaskError: it is none of them, or does not fit the image.
      UserError: pycocotools is not installed.
    """
    if isinstance(segmentation, list):
        return _pack_polygons(segmentation, size)
    if isinstance(segmentation, dict):
        return _pack_runs(segmentation, size)
    raise MaskError(f"segmentation must be polygons or run lengths, got {shown(segmentation)}")


def unpack_masks(packed: Sequence[bytes], size: Size) -> UInt8[np.ndarray, "N H W"]:
    """Return the pixels of masks, 1 inside and 0 outside.

    Args:
      packed: Of each mask, checked.
      size: Height and width.
    """
    masks = [unpack_mask(runs, size) for runs in packed]
    return np.stack(masks) if masks else np.zeros((0, *size), np.uint8)


def unpack_mask(packed: bytes, size: Size) -> UInt8[np.ndarray, "H W"]:
    """Return the pixels of a mask, 1 inside and 0 outside.

    Not by pycocotools, which NumPy warns of where it does this.
    """
    runs = unpack_runs(packed)
    inside = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(inside, runs).reshape(size[1], size[0]).T


def pack_pixels(masks: UInt8[np.ndarray, "N H W"]) -> list[bytes]:
    """Return the packed run lengths of masks.

    Args:
      masks: Other than 0 inside.
    """
    columns_first = np.asfortranarray(masks.transpose(1, 2, 0))
    return [runs["counts"] for runs in _coco_masks().encode(columns_first)]


def mask_areas(packed: Sequence[bytes], size: Size) -> Int64[np.ndarray, " N"]:
    """Return how many pixels are inside of each mask."""
    if not packed:
        return np.zeros(0, np.int64)
    return _coco_masks().area([{"size": size, "counts": x} for x in packed]).astype(np.int64)


def _coco_masks() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(_EXTRA) from error
    return mask


def shown(value: Any) -> str:
    """Return a value of a stranger's file in short, without control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pack_polygons(polygons: list[Any], size: Size) -> bytes:
    if not polygons:
        raise MaskError("segmentation must have a polygon or run lengths, got none")
    checked = [_checked_polygon(polygon, size) for polygon in polygons]
    length = sum(_outline_length(polygon) for polygon in checked)
    if length > _LONGEST_OUTLINE:
        raise MaskError(f"outlines must be at most {_LONGEST_OUTLINE:,} pixels, got {length:,.0f}")
    masks = _coco_masks()
    runs = masks.frPyObjects([polygon.tolist() for polygon in checked], *size)
    return masks.merge(runs)["counts"]


def _checked_polygon(polygon: Any, size: Size) -> np.ndarray:
    if not isinstance(polygon, list):
        raise MaskError(f"polygons must be lists of numbers, got {shown(polygon)}")
    if len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(
            f"polygons must have x and y of 3 points or more, got {len(polygon)} values"
        )
    if any(type(value) not in (int, float) for value in polygon):
        raise MaskError(f"polygons must be lists of numbers, got {shown(polygon)}")
    points = np.array(polygon, np.float64)
    # Annotators draw over the border of an image, but not by more than an image.
    limits = np.tile([size[1], size[0]], len(points) // 2)
    if not np.all((points >= -limits) & (points <= 2 * limits)):
        raise MaskError(f"polygons must lie in the image ({size[1]} x {size[0]}) or near it")
    return points


def _outline_length(polygon: np.ndarray) -> float:
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) + len(points)


def _pack_runs(segmentation: dict[str, Any], size: Size) -> bytes:
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if stated != list(size):
        raise MaskError(
            f"run lengths must be of the image's height and width, {list(size)}; got"
            f" {shown(stated)}"
        )
    if isinstance(counts, str):
        packed = counts.encode("ascii", "backslashreplace")
        _check_runs(unpack_runs(packed), size)
        return packed
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise MaskError(f"counts must be a string or a list of whole numbers, got {shown(counts)}")
    if any(not 0 <= count <= size[0] * size[1] for count in counts):
        raise MaskError("run lengths must be from 0 to the pixels of the image")
    _check_runs(np.array(counts, np.int64), size)
    runs = {"size": list(size), "counts": counts}
    return _coco_masks().frPyObjects(runs, *size)["counts"]


def _check_runs(runs: Int64[np.ndarray, " R"], size: Size) -> None:
    pixels = size[0] * size[1]
    if len(runs) and runs.min() < 0:
        raise MaskError(f"run lengths must not be negative, got {runs.min()}")
    if runs.sum() != pixels:
        raise MaskError(f"run lengths must add up to the image's {pixels} pixels, got {runs.sum()}")


def unpack_runs(packed: bytes) -> Int64[np.ndarray, " R"]:
    """Return the run lengths in a string.

    Raises:
      MaskError: it has characters that it cannot have, ends within a number, or numbers are too
        large.
    """
    digits = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    if len(digits) == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise MaskError("packed run lengths must have characters 0 to o only")
    last = np.flatnonzero(digits < 32)
    if len(last) == 0 or last[-1] != len(digits) - 1:
        raise MaskError("packed run lengths end within a number")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 6:
        raise MaskError("packed run lengths must have numbers of at most 30 bits")
    place = np.arange(len(digits)) - np.repeat(first, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    negative = (digits[last] & 16) > 0
    values = values - np.where(negative, np.int64(1) << (5 * lengths), 0)
    # Differences to the number two before add up along both sequences.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
