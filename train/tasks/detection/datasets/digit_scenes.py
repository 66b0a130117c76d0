"""Handwritten digits on photographs, as a data set in COCO's format: no download.

A scene is a part of a photograph with one to five digits on it (both, split by source, are in
`natjax.train.data.digits_on_photos`). An object is what is seen of a digit: pixels where its
enlarged ink is at least half as dark as the darkest, less what later digits cover, at most 30 %.

Scenes are written once, as JSON and zips of JPEG, and read as any data in COCO's format.
"""

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from natjax.train import console
from natjax.train.data.datasets import prepared_dir
from natjax.train.data.digits_on_photos import (
    digits,
    draw_digit,
    draw_place,
    enlarged,
    is_ink,
    photo_part,
)
from natjax.train.data.prepared import locked
from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets import coco
from natjax.train.tasks.detection.datasets.masks import pack_pixels
from natjax.train.tasks.detection.datasets.registry import Split

SIDE = 128
_COUNTS = {"train": 3000, "val": 300}
_STREAMS = {"train": 0, "val": 1}
_DIGITS = (1, 5)
_DIGIT_SIDES = (28, 64)
_PART_SIDES = (96, 200)
_TRIES = 10
_LEAST_SEEN = 0.7
# Changes when scenes change.
_NAME = "digit_scenes_1"


def open_split(data: ObjectsConfig, split: str) -> Split:
    """Open a split, after writing the scenes if they are not there.

    Args:
      data: Says where prepared data sets are.
      split: ``"train"`` or ``"val"``.
    """
    root = prepared_dir(data)
    folder = root / _NAME
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{_NAME}.lock"):
            if not folder.is_dir():
                _prepare(folder)
    found = coco.open_folder(folder, split)
    return Split(dataset="digit_scenes", annotations=found.annotations, files=found.files)


def _prepare(folder: Path) -> None:
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="incomplete."))
    try:
        with console.waiting(f"Writing scenes of digits to {folder} (once)"):
            write_scenes(partial, _COUNTS)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_scenes(folder: Path, counts: Mapping[str, int]) -> None:
    """Write scenes into a folder: ``train.json``, ``train.zip`` and the same of ``val``.

    Args:
      folder: It is there.
      counts: How many of each split; the first ones are the same whatever their number.
    """
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for index in range(count):
                image, labels, masks = scene(split, index)
                name = f"{index:06}.jpg"
                archive.writestr(name, _jpeg(image))
                images.append({"id": index, "file_name": name, "height": SIDE, "width": SIDE})
                objects += [
                    {"id": len(objects) + i, "image_id": index, **annotation}
                    for i, annotation in enumerate(_annotations(labels, masks))
                ]
        categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
        text = json.dumps({"images": images, "annotations": objects, "categories": categories})
        (folder / f"{split}.json").write_text(text)


def scene(
    split: str, index: int
) -> tuple[UInt8[np.ndarray, "S S 3"], list[int], UInt8[np.ndarray, "N S S"]]:
    """Return image, digits and their masks of a scene, all functions of split and index."""
    rng = np.random.default_rng((_STREAMS[split], index))
    image = photo_part(split, rng, sides=_PART_SIDES, size=SIDE)
    pictures, classes = digits(split)
    labels: list[int] = []
    whole: list[int] = []  # pixels of each digit, if nothing covered it
    masks = np.zeros((0, SIDE, SIDE), np.uint8)
    for _ in range(rng.integers(_DIGITS[0], _DIGITS[1] + 1)):
        chosen = int(rng.integers(len(classes)))
        for _ in range(_TRIES):
            place = draw_place(rng, sides=_DIGIT_SIDES, size=SIDE)
            large = enlarged(pictures[chosen], place)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[place.rows, place.columns] = is_ink(large)
            seen = masks * (1 - mask)
            if all(seen.sum(axis=(1, 2)) >= _LEAST_SEEN * np.array(whole)):
                draw_digit(image, large, place, rng)
                masks = np.concatenate([seen, mask[None]])
                labels.append(int(classes[chosen]))
                whole.append(int(mask.sum()))
                break
    return image, labels, masks


def _jpeg(image: UInt8[np.ndarray, "S S 3"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95)
    return out.getvalue()


def _annotations(labels: list[int], masks: UInt8[np.ndarray, "N S S"]) -> list[dict[str, Any]]:
    """Objects as COCO writes them."""
    made = []
    for label, mask, packed in zip(labels, masks, pack_pixels(masks), strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        made.append(
            {
                "category_id": label + 1,
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [SIDE, SIDE], "counts": packed.decode()},
            }
        )
    return made
