"""Reads annotations in COCO's format, from a file that may be large and a stranger's.

The text is gone through twice: for the images and the categories, wherever they are in the file,
and for the annotations. Only arrays are kept.
"""

import numpy as np

from natjax.train.errors import UserError
from natjax.train.tasks.detection.datasets.annotations import Annotations, joined
from natjax.train.tasks.detection.datasets.entries import (
    Image,
    Object,
    read_categories,
    read_images,
    read_objects,
)
from natjax.train.tasks.detection.datasets.json_lists import entries, find_lists

_LISTS = ("images", "categories", "annotations")
# A few broken entries are passed over; beyond this share something else is wrong.
_FEW, _SHARE = 16, 0.01
_LEAST_BUDGET = 2**26


def read_annotations(text: str, source: str) -> Annotations:
    """Read the text of a file.

    Args:
      text: The file.
      source: What to call it in messages.

    Raises:
      UserError: it is no JSON of COCO's format, or more than 16 and 1 % of its entries are broken.
    """
    places = find_lists(text, _LISTS, source)
    for name in _LISTS:
        if name not in places:
            raise UserError(f"{source} must have a list {name!r}, got none")
    found = {name: entries(text, place, source) for name, place in places.items()}
    broken: list[str] = []
    classes = read_categories(found["categories"], source)
    images = read_images(found["images"], broken)
    if not images:
        raise UserError("; ".join([f"{source} must have images, got none", *broken[:1]]))
    # A polygon of a few characters can be a mask of many bytes.
    budget = _LEAST_BUDGET + 32 * len(text)
    objects = list(read_objects(found["annotations"], images, classes, broken, budget))
    _check_few(broken, len(images) + len(objects), source)
    return _arrays(images, objects, classes, broken)


def _check_few(broken: list[str], count: int, source: str) -> None:
    entries = count + len(broken)
    if len(broken) > max(_FEW, _SHARE * entries):
        raise UserError(
            f"{len(broken)} of {entries} images and annotations of {source} are broken:"
            f" {'; '.join(broken[:3])}; ..."
        )


def _arrays(
    images: dict[int, Image],
    objects: list[Object],
    classes: dict[int, tuple[int, str]],
    broken: list[str],
) -> Annotations:
    objects = sorted(objects, key=lambda one: one.row)  # stable: in the order of the file
    file_names, file_ends = joined([image.file.encode() for image in images.values()])
    masks, mask_ends = joined([one.packed for one in objects])
    counts = np.bincount([one.row for one in objects], minlength=len(images)) if objects else 0
    first = np.zeros(len(images) + 1, np.int64)
    first[1:] = np.cumsum(np.broadcast_to(counts, len(images)))
    ids = sorted(classes)
    return Annotations(
        image_ids=np.array(list(images), np.int64),
        sizes=np.array([image.size for image in images.values()], np.int32),
        file_names=file_names,
        file_ends=file_ends,
        first=first,
        ids=np.array([one.id for one in objects], np.int64),
        boxes=np.array([one.box for one in objects], np.float64).reshape(-1, 4),
        areas=np.array([one.area for one in objects], np.float64),
        labels=np.array([one.label for one in objects], np.int32),
        crowd=np.array([one.crowd for one in objects], bool),
        trained=np.array([one.trained for one in objects], bool),
        masks=masks,
        mask_ends=mask_ends,
        category_ids=np.array(ids, np.int64),
        class_names=np.frombuffer("\n".join(classes[i][1] for i in ids).encode(), np.uint8),
        broken=np.frombuffer("\n".join(broken).encode(), np.uint8),
    )
