"""Annotations of a split as arrays, which worker processes share.

COCO's 860,000 annotations take gigabytes as Python objects. As arrays in files they take some
hundred megabytes, are found out once (`natjax.train.tasks.detection.datasets.coco_json`), and are
mapped into the memory of every process that reads them.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from natjax.train import console
from natjax.train.tasks.detection.datasets.masks import unpack_mask, unpack_masks

Size = tuple[int, int]

_STAMP = "stamp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects of an image.

    Attributes:
      size: Height and width of the image.
      boxes: Left, upper, right and lower border in pixels, as annotated: they may go beyond it.
      labels: Classes, from 0 on.
      crowd: Which are groups of objects that nobody told apart.
      trained: Which training takes: no crowds, and only what mmdetection takes.
      packed: Packed run lengths of the masks.
    """

    size: Size
    boxes: Float32[np.ndarray, "N 4"]
    labels: Int32[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    trained: Bool[np.ndarray, " N"]
    packed: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def masks(self) -> UInt8[np.ndarray, "N H W"]:
        """The masks' pixels, 0 or 1; decoded anew each time."""
        return unpack_masks(self.packed, self.size)

    def mask(self, number: int) -> UInt8[np.ndarray, "H W"]:
        """Return the pixels of one mask, 0 or 1."""
        return unpack_mask(self.packed[number], self.size)

    def take(self, which: Bool[np.ndarray, " N"]) -> "Objects":
        """Return some of them."""
        return Objects(
            size=self.size,
            boxes=self.boxes[which],
            labels=self.labels[which],
            crowd=self.crowd[which],
            trained=self.trained[which],
            packed=tuple(self.packed[i] for i in np.flatnonzero(which)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotations:
    """Images of a split and their objects; objects lie in the order of their images.

    Attributes:
      image_ids: Id of each image.
      sizes: Height and width of each image.
      file_names: File names of all images, joined, in UTF-8.
      file_ends: Where the name of each image ends.
      first: Number of the first object of each image; at the end the number of all.
      ids: Id of each object's annotation.
      boxes: Left and upper border, width and height, as they are in the file.
      areas: Pixels, by which evaluation tells small objects from large ones.
      labels: Classes, from 0 on.
      crowd: Which are groups of objects.
      trained: Which training takes.
      masks: Packed run lengths of all masks, joined.
      mask_ends: Where those of each object end.
      category_ids: Id of each class in the file.
      class_names: Names of the classes, joined by line feeds, in UTF-8.
      broken: What was passed over and why, in lines of UTF-8.
      folder: Where the arrays are mapped from; None if they are in memory only.
    """

    image_ids: Int64[np.ndarray, " I"]
    sizes: Int32[np.ndarray, "I 2"]
    file_names: UInt8[np.ndarray, " F"]
    file_ends: Int64[np.ndarray, " I"]
    first: Int64[np.ndarray, " I+1"]
    ids: Int64[np.ndarray, " N"]
    boxes: Float64[np.ndarray, "N 4"]
    areas: Float64[np.ndarray, " N"]
    labels: Int32[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]
    trained: Bool[np.ndarray, " N"]
    masks: UInt8[np.ndarray, " M"]
    mask_ends: Int64[np.ndarray, " N"]
    category_ids: Int64[np.ndarray, " C"]
    class_names: UInt8[np.ndarray, " T"]
    broken: UInt8[np.ndarray, " B"]
    folder: Path | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def __reduce__(self) -> Any:
        """Send workers the place of mapped arrays, not their content."""
        if self.folder is None:
            return _made, (self._arrays(),)
        return _mapped, (self.folder,)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _NAMES}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.class_names.tobytes().decode().split("\n"))

    def file(self, index: int) -> str:
        """Return the file name of an image."""
        start = self.file_ends[index - 1] if index else 0
        return self.file_names[start : self.file_ends[index]].tobytes().decode()

    def packed(self, number: int) -> bytes:
        """Return the packed run lengths of an object's mask."""
        start = self.mask_ends[number - 1] if number else 0
        return self.masks[start : self.mask_ends[number]].tobytes()

    def objects(self, index: int) -> Objects:
        """Return the objects of an image."""
        rows = slice(int(self.first[index]), int(self.first[index + 1]))
        left_top, sides = np.split(self.boxes[rows], 2, axis=1)
        height, width = self.sizes[index].tolist()
        return Objects(
            size=(height, width),
            boxes=np.concatenate([left_top, left_top + sides], axis=1).astype(np.float32),
            labels=np.array(self.labels[rows]),
            crowd=np.array(self.crowd[rows]),
            trained=np.array(self.trained[rows]),
            packed=tuple(self.packed(number) for number in range(rows.start, rows.stop)),
        )


_NAMES = tuple(f.name for f in dataclasses.fields(Annotations) if f.name != "folder")


def _made(arrays: dict[str, np.ndarray]) -> Annotations:
    return Annotations(**arrays)


def _mapped(folder: Path) -> Annotations:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _NAMES}
    return Annotations(**arrays, folder=folder)


def joined(texts: Sequence[bytes]) -> tuple[UInt8[np.ndarray, " M"], Int64[np.ndarray, " N"]]:
    """Return byte strings one after the other, and where each ends."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), ends


def load(folder: Path, stamp: Int64[np.ndarray, "F 2"]) -> Annotations | None:
    """Return what `save` has written, or None: not there, damaged, or about other files.

    Args:
      folder: Where it is.
      stamp: Of the files that they are about (`natjax.train.data.file_cache.stamp`).
    """
    try:
        if not np.array_equal(np.load(folder / f"{_STAMP}.npy"), stamp):
            return None
        return _mapped(folder)
    except (OSError, ValueError, EOFError):
        return None


def save(found: Annotations, folder: Path, stamp: Int64[np.ndarray, "F 2"]) -> Annotations:
    """Write annotations into a folder, whole or not at all, and map them from there.

    Returns:
      The same annotations; in memory only, with a warning, where the folder cannot be written.
    """
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial."))
        for name, values in (found._arrays() | {_STAMP: stamp}).items():
            np.save(partial / f"{name}.npy", values, allow_pickle=False)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        return _mapped(folder)
    except OSError as error:  # found out again the next time
        console.warn(f"the annotations are not kept for the next time: {error}")
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        return found
