"""Labelled images to evaluate weights on: a folder for each class, or what TFDS has prepared."""

import dataclasses
from pathlib import Path

from natjax.preprocessing import Preprocessing
from natjax.train.data.datasets import Source, open_split
from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError
from natjax.train.tasks.classification.datasets.image_folder import class_folders, list_images
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_TFDS_NAME = "imagenet2012"
_TFDS_SPLIT = "validation"


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Takes the place of a TFDS builder; there is one split, whatever its name.

    Attributes:
      images: The records.
      classes: How many classes they are of.
    """

    images: Source
    classes: int

    def is_prepared(self) -> bool:
        """Whether it can be opened: it is open."""
        return True

    def source(self, split: str) -> Source:
        """Return the records."""
        del split
        return self.images


def open_held_out(folder: Path) -> HeldOut:
    """Find the images in a folder.

    Args:
      folder: It holds a folder for each class, whose sorted names give the classes (for ImageNet
        the synset ids, n01440764 first), or a data set that TFDS has prepared: ``imagenet2012``
        with its versions, or one version. A class may have no image.

    Raises:
      UserError: there is neither.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"--data.dir must be a folder, got {folder}")
    version = find_version(folder, _TFDS_NAME)
    if version is not None:
        return _prepared(version)
    places = class_folders(folder)
    images = list_images(folder, places)
    if not len(images):
        raise UserError(
            f"{folder} must hold a folder of images for each class, or a data set that TFDS has"
            f" prepared ({_TFDS_NAME}); there is neither"
        )
    return HeldOut(images, len(places))


def _prepared(version: Path) -> HeldOut:
    builder = open_version(version)
    if _TFDS_SPLIT not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{version} must have the split {_TFDS_SPLIT!r}, got {splits}")
    return HeldOut(open_split(builder, _TFDS_SPLIT), builder.info.features["label"].num_classes)


def held_out_spec(images: HeldOut, how: Preprocessing) -> LabelledImages:
    """Return open images as the data set of a task.

    Args:
      images: They can be evaluated on, and nothing else.
      how: Mean and deviation.
    """
    return LabelledImages(
        name="held_out",
        channels=3,
        class_names=tuple(map(str, range(images.classes))),
        mean=how.mean,
        std=how.std,
        train_split=_TFDS_SPLIT,
        test_split=_TFDS_SPLIT,
        builder=lambda *_: images,
    )
