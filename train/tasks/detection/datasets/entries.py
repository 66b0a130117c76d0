"""Images, categories and annotations of a file in COCO's format, each checked.

Whatever cannot be meant is passed over and told of, by its id.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from natjax.train.errors import UserError
from natjax.train.tasks.detection.datasets.masks import MaskError, mask_areas, pack_mask, shown

Size = tuple[int, int]

# Pillow refuses images of more pixels.
_MOST_PIXELS = 178_956_970
_LONGEST_SIDE = 65_535
_FARTHEST = 1e6
_LARGEST = 1e12
# Of what is told, so that a file of nothing else does not fill the memory with messages.
_MOST_BROKEN = 10_000


class BrokenError(ValueError):
    """An entry that cannot be meant; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An image.

    Attributes:
      row: Its place among those that can be used.
      size: Height and width.
      file: Its file name.
    """

    row: int
    size: Size
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """An annotation.

    Attributes:
      id: Its id.
      row: Of its image.
      label: Its class.
      box: Left and upper border, width and height.
      area: In pixels.
      crowd: Whether it is a group of objects.
      trained: Whether training takes it.
      packed: Packed run lengths of its mask.
    """

    id: int
    row: int
    label: int
    box: tuple[float, ...]
    area: float
    crowd: bool
    trained: bool
    packed: bytes


def _whole(entry: Any, name: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    value = entry.get(name)
    if type(value) is not int or not low <= value <= high:
        limits = "" if low < 0 else f" from {low} to {high}"
        raise BrokenError(f"{name} must be a whole number{limits}, got {shown(value)}")
    return value


def _number(value: Any) -> float | None:
    """A finite number as a float, else None."""
    if type(value) not in (int, float) or abs(value) > _LARGEST or math.isnan(value):
        return None
    return float(value)


def read_categories(entries: Iterable[Any], source: str) -> dict[int, tuple[int, str]]:
    """Return label and name of each category, by its id; labels are in the order of ids.

    Raises:
      UserError: there is none, or one is broken: labels hang on all of them.
    """
    names: dict[int, str] = {}
    for entry in entries:
        try:
            number, name = _whole(entry, "id"), entry.get("name")
        except (AttributeError, BrokenError) as error:
            raise UserError(f"{source} has a category {shown(entry)}, of no id") from error
        if not isinstance(name, str) or not name.strip() or "\n" in name or not _is_text(name):
            raise UserError(f"category {number} of {source} must have a name, got {shown(name)}")
        if number in names:
            raise UserError(f"{source} must have each category once, got two of id {number}")
        names[number] = name
    if not names:
        raise UserError(f"{source} must have categories, got none")
    return {number: (label, names[number]) for label, number in enumerate(sorted(names))}


def _is_text(text: str) -> bool:
    """Whether it can be written: half a pair of UTF-16 cannot."""
    return not any(0xD800 <= ord(sign) < 0xE000 for sign in text)


def _each[T](
    entries: Iterable[Any], kind: str, read: Callable[[int, dict[str, Any]], T], broken: list[str]
) -> Iterator[T]:
    """What is read of entries and their ids; those that are broken are told of.

    Raises:
      UserError: there are too many of them.
    """
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise BrokenError(f"must be an object, got {shown(entry)}")
            number = _whole(entry, "id")
            if number in seen:
                raise BrokenError(f"another {kind} has this id")
            made = read(number, entry)
        except (BrokenError, MaskError) as error:
            known = entry.get("id") if isinstance(entry, dict) else None
            called = shown(known) if type(known) is int else f"in place {place}, of no id,"
            broken.append(f"{kind} {called}: {error}")
            if len(broken) > _MOST_BROKEN:
                raise UserError(
                    f"more than {_MOST_BROKEN} entries are broken: {'; '.join(broken[:3])}; ..."
                ) from error
            continue
        seen.add(number)
        yield made


def read_images(entries: Iterable[Any], broken: list[str]) -> dict[int, Image]:
    """Return the images by their ids.

    Args:
      entries: Of the file.
      broken: What cannot be used, and why, is added.

    Raises:
      UserError: too much is broken.
    """
    images: dict[int, Image] = {}

    def read(number: int, entry: dict[str, Any]) -> Image:
        name = entry.get("file_name")
        height, width = (_whole(entry, side, 1, _LONGEST_SIDE) for side in ("height", "width"))
        if height * width > _MOST_PIXELS:
            raise BrokenError(f"must have at most {_MOST_PIXELS} pixels, got {width} x {height}")
        if not isinstance(name, str) or not name or not _is_text(name):
            raise BrokenError(f"file_name must be the name of a file, got {shown(name)}")
        images[number] = Image(row=len(images), size=(height, width), file=name)
        return images[number]

    for _ in _each(entries, "image", read, broken):
        pass
    return images


def read_objects(
    entries: Iterable[Any],
    images: dict[int, Image],
    classes: dict[int, tuple[int, str]],
    broken: list[str],
    budget: int,
) -> Iterator[Object]:
    """Iterate over the annotations.

    Args:
      entries: Of the file.
      images: By id.
      classes: As `read_categories` returns them.
      broken: What cannot be used, and why, is added.
      budget: Bytes that all masks may take.

    Raises:
      UserError: too much is broken, or the masks take more.
    """

    def read(number: int, entry: dict[str, Any]) -> Object:
        return _object(number, entry, images, classes)

    taken = 0
    for made in _each(entries, "annotation", read, broken):
        taken += len(made.packed)
        if taken > budget:
            raise UserError(
                f"all masks must take at most {budget:,} bytes, as the text is short; annotation"
                f" {made.id} goes beyond it"
            )
        yield made


def _object(
    number: int,
    entry: dict[str, Any],
    images: dict[int, Image],
    classes: dict[int, tuple[int, str]],
) -> Object:
    image = images.get(_whole(entry, "image_id"))
    if image is None:
        raise BrokenError(f"there is no usable image {entry['image_id']}")
    category = classes.get(_whole(entry, "category_id"))
    if category is None:
        raise BrokenError(f"there is no category {entry['category_id']}")
    box, crowd = _box(entry), entry.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        raise BrokenError(f"iscrowd must be 0 or 1, got {shown(crowd)}")
    packed = pack_mask(entry.get("segmentation"), image.size)
    area = _area(entry, packed, image.size)
    takes = not (crowd or entry.get("ignore")) and _is_trained(box, area, image.size)
    return Object(
        id=number,
        row=image.row,
        label=category[0],
        box=box,
        area=area,
        crowd=bool(crowd),
        trained=takes,
        packed=packed,
    )


def _box(entry: dict[str, Any]) -> tuple[float, ...]:
    values = entry.get("bbox")
    if not isinstance(values, list) or len(values) != 4:
        raise BrokenError(f"bbox must be four numbers, got {shown(values)}")
    box = tuple(_number(value) for value in values)
    if any(value is None or abs(value) > _FARTHEST for value in box):
        raise BrokenError(
            f"bbox must be four numbers of at most {_FARTHEST:,.0f}, got {shown(values)}"
        )
    if min(box[2:]) < 0:
        raise BrokenError(f"bbox must have no negative width or height, got {shown(values)}")
    return box


def _area(entry: dict[str, Any], packed: bytes, size: Size) -> float:
    if "area" not in entry:
        return float(mask_areas([packed], size)[0])
    area = _number(entry["area"])
    if area is None or area < 0:
        raise BrokenError(f"area must be a number from 0 on, got {shown(entry['area'])}")
    return area


def _is_trained(box: tuple[float, ...], area: float, size: Size) -> bool:
    """Whether training takes a box: as mmdetection, not those outside or thinner than a pixel."""
    left, top, width, height = box
    across = min(left + width, size[1]) - max(left, 0)
    down = min(top + height, size[0]) - max(top, 0)
    return across > 0 and down > 0 and area > 0 and width >= 1 and height >= 1
