"""Labelled photos to evaluate on: a folder for each class, or a prepared TFDS data set."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from natjax.preprocessing import Preprocessing
from natjax.train.data.class_folders import class_folders, image_files
from natjax.train.data.datasets import open_split
from natjax.train.data.images import Pixels
from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError

# Pillow hands Encapsulated PostScript to an interpreter of programs; a photo should not be one.
_REFUSED_FORMATS = {"EPS"}
_TFDS_NAME = "imagenet2012"
_TFDS_SPLIT = "validation"


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos by index.

    Attributes:
      count: How many there are.
      classes: How many classes they are of.
      name: ``index -> what to call it in a message``.
      open: ``index -> file of the encoded image``.
      label: ``index -> class``.
    """

    count: int
    classes: int
    name: Callable[[int], str]
    open: Callable[[int], io.BufferedIOBase]
    label: Callable[[int], int]


def open_photos(folder: Path) -> Photos:
    """Find the photos in a folder.

    Args:
      folder: It holds a folder for each class, whose sorted names give the classes (for ImageNet
        the synset ids, n01440764 first), or a data set that TFDS has prepared: ``imagenet2012``
        with its versions, or one version.

    Raises:
      UserError: there is neither.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"--data.dir must be a folder, got {folder}")
    prepared = find_version(folder, _TFDS_NAME)
    return _class_folders(folder) if prepared is None else _tfds_photos(prepared)


def _class_folders(folder: Path) -> Photos:
    classes = class_folders(folder)
    files = [(path, i) for i, place in enumerate(classes) for path in image_files(place)]
    if not files:
        raise UserError(
            f"{folder} must hold a folder of images for each class, or a data set that TFDS has"
            f" prepared ({_TFDS_NAME}); there is neither"
        )
    return Photos(
        count=len(files),
        classes=len(classes),
        name=lambda index: str(files[index][0]),
        open=lambda index: files[index][0].open("rb"),
        label=lambda index: files[index][1],
    )


def _tfds_photos(version: Path) -> Photos:
    builder = open_version(version)
    if _TFDS_SPLIT not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{version} must have the split {_TFDS_SPLIT!r}, got {splits}")
    source = open_split(builder, _TFDS_SPLIT)
    return Photos(
        count=len(source),
        classes=builder.info.features["label"].num_classes,
        name=lambda index: f"{version.parent.name} {_TFDS_SPLIT} image {index}",
        open=lambda index: io.BytesIO(source[index]["image"]),
        label=lambda index: int(source[index]["label"]),
    )


def read_photo(file: io.BufferedIOBase, how: Preprocessing) -> Pixels:
    """Decode and prepare a photo as it was done when the published accuracies were measured.

    Any mode becomes RGB by Pillow's own conversion, and EXIF orientation is not looked at.

    Args:
      file: The encoded image.
      how: Sizes.
    """
    Image.init()
    with Image.open(file, formats=[f for f in Image.OPEN if f not in _REFUSED_FORMATS]) as image:
        return prepare_photo(image.convert("RGB"), how)


def prepare_photo(image: Image.Image, how: Preprocessing) -> Pixels:
    """Resize the short side, bicubic, and cut out the middle."""
    size = how.resized(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image.crop(how.crop_box(*image.size)), np.uint8)
