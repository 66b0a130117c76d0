"""The one interface between images with objects and the task, and the list of data sets."""

import dataclasses
import importlib
import typing
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from natjax.train.errors import UserError, did_you_mean
from natjax.train.tasks.detection.datasets.annotations import Annotations, Objects
from natjax.train.tasks.detection.datasets.images import ImageFiles, decode_upright

if typing.TYPE_CHECKING:
    from natjax.train.tasks.detection.config import ObjectsConfig


class Info(NamedTuple):
    """What is known of an image before it is read.

    Attributes:
      id: Its id in the annotations.
      height: In pixels.
      width: In pixels.
      file: Its name in the annotations.
    """

    id: int
    height: int
    width: int
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The images of a split with their objects, by index.

    Attributes:
      dataset: What to call the data set in messages.
      annotations: Sizes of the images, and their objects.
      files: The images.
    """

    dataset: str
    annotations: Annotations
    files: ImageFiles

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.annotations.classes

    def __len__(self) -> int:
        """Return how many images there are, those without objects too."""
        return len(self.annotations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image``, as `image` does, and ``index``: a record as `Readable` wants it."""
        return {"image": self.image(index), "index": index}

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels of an image, in RGB.

        Raises:
          Exception: it cannot be read, or is not of the size that the annotations say.
        """
        info = self.info(index)
        data = self.files.read(index, info.file)
        return decode_upright(data, (info.height, info.width))

    def objects(self, index: int) -> Objects:
        """Return the objects of an image, crowds and those that training leaves out too."""
        return self.annotations.objects(index)

    def info(self, index: int) -> Info:
        """Return id, size and file name of an image, without reading it."""
        rows = self.annotations
        height, width = rows.sizes[index].tolist()
        return Info(int(rows.image_ids[index]), height, width, rows.file(index))

    def name(self, index: int) -> str:
        """Return what to call an image in messages."""
        return self.files.name(index, self.annotations.file(index))


# Module of each data set, with its own `open_split`.
_HOME = {
    "coco": "natjax.train.tasks.detection.datasets.coco",
    "coco/2017": "natjax.train.tasks.detection.datasets.prepared",
    "digit_scenes": "natjax.train.tasks.detection.datasets.digit_scenes",
}


def open_split(data: "ObjectsConfig", split: str) -> Split:
    """Open a split of the data set that is configured.

    Args:
      data: Which data set, and where.
      split: ``"train"`` or ``"val"``.

    Raises:
      UserError: there is none of this name, or its files are missing or wrong.
    """
    if data.name not in _HOME:
        near = did_you_mean(data.name, _HOME)
        raise UserError(f"unknown data set {data.name!r}{near}; data sets are {', '.join(_HOME)}")
    return importlib.import_module(_HOME[data.name]).open_split(data, split)


def check_same_classes(train: Split, held_out: Split) -> None:
    """Check that both splits number the same classes.

    Raises:
      UserError: they differ; the message has the first difference.
    """
    for label, (one, other) in enumerate(zip(train.classes, held_out.classes, strict=False)):
        if one != other:
            raise UserError(
                f"both splits of {train.dataset} must have the same categories; number {label} is"
                f" {one!r} in training and {other!r} in evaluation"
            )
    if len(train.classes) != len(held_out.classes):
        raise UserError(
            f"both splits of {train.dataset} must have the same categories; there are"
            f" {len(train.classes)} in training and {len(held_out.classes)} in evaluation"
        )
