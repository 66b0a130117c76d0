"""Changes of an image together with its objects, as mmdetection makes them.

What happens to an image is a `Plan`, made from its size and random numbers before it is read, so
that the sizes of all images of a batch are known to every host. Masks go through one by one, since
a crowded photo has a hundred.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from natjax.train.data.resize import Size, fitted_size, resize_image, resize_nearest
from natjax.train.tasks.detection.config import AugmentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of an image.

    Attributes:
      size: Height and width that the image is resized to first.
      top: First row of the part.
      left: First column of the part.
      height: Its rows.
      width: Its columns.
    """

    size: Size
    top: int
    left: int
    height: int
    width: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to an image, in this order.

    Attributes:
      size: Height and width that it has.
      flip: Whether it is mirrored.
      cut: The part that is taken; None for all.
      final: Height and width that it gets.
    """

    size: Size
    flip: bool = False
    cut: Cut | None = None
    final: Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What all images of a batch share, so that they are of about one size.

    Attributes:
      side: Shorter side that they get.
      cut_side: Shorter side that they have when they are cut; None if they are not.
    """

    side: int
    cut_side: int | None


def draw_scale(how: AugmentConfig, rng: np.random.Generator) -> Scale:
    """Draw what the images of a batch share."""
    cuts = rng.random() < how.crop
    cut_side = int(how.crop_sides[rng.integers(len(how.crop_sides))]) if cuts else None
    return Scale(side=int(how.sides[rng.integers(len(how.sides))]), cut_side=cut_side)


def draw_plan(size: Size, scale: Scale, how: AugmentConfig, rng: np.random.Generator) -> Plan:
    """Draw what happens to an image.

    A part is wide where its image is, so that a batch of wide images stays one; where the sides
    that were drawn make a tall one of it, they are exchanged, and the other way round.

    Args:
      size: Its height and width.
      scale: Of the batch.
      how: What is random.
      rng: Source of the draws.
    """
    flip, longest = bool(rng.random() < how.hflip), max(how.frame)
    if scale.cut_side is None:
        return Plan(size=size, flip=flip, final=fitted_size(size, (longest, scale.side)))
    first = fitted_size(size, (longest, scale.cut_side))
    height, width = (int(rng.integers(*_bounds(side, how.crop_range))) for side in first)
    if is_wide(first) != is_wide((height, width)) and height != width:
        height, width = width, height
    top, left = (
        int(rng.integers(side - part + 1))
        for side, part in zip(first, (height, width), strict=True)
    )
    cut = Cut(size=first, top=top, left=left, height=height, width=width)
    return Plan(
        size=size, flip=flip, cut=cut, final=fitted_size((height, width), (longest, scale.side))
    )


def _bounds(side: int, limits: tuple[int, int]) -> tuple[int, int]:
    return min(side, limits[0]), min(side, limits[1]) + 1


def is_wide(size: Size) -> bool:
    """Return whether an image is wider than high."""
    return size[1] > size[0]


def move_image(image: UInt8[np.ndarray, "_ _ 3"], plan: Plan) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return an image as planned."""
    if plan.flip:
        image = np.ascontiguousarray(image[:, ::-1])
    if plan.cut is not None:
        image = np.ascontiguousarray(resize_image(image, plan.cut.size)[plan.cut.place])
    return resize_image(image, plan.final)


def move_mask(mask: UInt8[np.ndarray, "_ _"], plan: Plan) -> UInt8[np.ndarray, "_ _"]:
    """Return the mask of an object as planned for its image."""
    mask = np.ascontiguousarray(mask[:, ::-1] if plan.flip else mask)
    if plan.cut is not None:
        mask = np.ascontiguousarray(resize_nearest(mask, plan.cut.size)[plan.cut.place])
    return resize_nearest(mask, plan.final)


def move_boxes(
    boxes: Float32[np.ndarray, "N 4"], plan: Plan
) -> tuple[Float32[np.ndarray, "N 4"], Bool[np.ndarray, " N"]]:
    """Return boxes as planned for their image, clipped to it, and which of them are still there.

    Only a cut takes boxes away: those that have no area in it.
    """
    here = np.ones(len(boxes), bool)
    if plan.flip:
        width = np.float32(plan.size[1])
        boxes = np.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
        )
    size, cut = plan.size, plan.cut
    if cut is not None:
        boxes = _resized(boxes, size, cut.size)
        corner = np.array([cut.left, cut.top, cut.left, cut.top], np.float32)
        boxes = clipped(boxes - corner, (cut.height, cut.width))
        here = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        size = (cut.height, cut.width)
    return _resized(boxes, size, plan.final), here


def _resized(boxes: np.ndarray, size: Size, final: Size) -> np.ndarray:
    return clipped(boxes * np.tile(ratios(size, final)[::-1], 2), final)


def ratios(size: Size, final: Size) -> Float32[np.ndarray, " 2"]:
    """Return what height and width are multiplied by."""
    return np.array([final[0] / size[0], final[1] / size[1]], np.float32)


def clipped(boxes: Float32[np.ndarray, "N 4"], size: Size) -> Float32[np.ndarray, "N 4"]:
    """Return the parts of boxes that are in an image."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


# Sizes that batches are padded to.


def bucket_of(sizes: Sequence[Size], buckets: Sequence[tuple[int, int]]) -> Size:
    """Return the smallest size of a batch that holds images.

    Args:
      sizes: Their heights and widths.
      buckets: Shorter and longer side of each size, which may be wide or tall.

    Raises:
      ValueError: none holds them.
    """
    height, width = (max(size[axis] for size in sizes) for axis in range(2))
    turned = [(min(sides), max(sides)) for sides in buckets]
    turned += [(long, short) for short, long in turned]
    fits = [size for size in turned if size[0] >= height and size[1] >= width]
    if not fits:
        raise ValueError(f"no bucket of {list(buckets)} holds {height} x {width} pixels")
    return min(fits, key=lambda size: size[0] * size[1])


def least_size(size: Size, multiple: int) -> Size:
    """Return the smallest multiples that hold an image."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def within(size: Size, bucket: Size) -> Size:
    """Return the size of an image that is made smaller, where it has to be, to be held."""
    factor = min(1.0, bucket[0] / size[0], bucket[1] / size[1])
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
