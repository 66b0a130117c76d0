"""A data set of one's own: ``train/`` and ``val/``, with a folder of images for each class."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}
_LAYOUT = "train/CLASS/IMAGE and val/CLASS/IMAGE (or validation, or test, for val)"


def class_folders(folder: Path) -> list[Path]:
    """Return the folders of the classes, in the order of their labels; hidden ones do not count."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def image_files(folder: Path) -> list[Path]:
    """Return the files of a class in order; links are followed, hidden files do not count."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def check_flat(folder: Path) -> None:
    """Refuse folders inside the folder of a class: nobody could say what they mean.

    Raises:
      UserError: there is one, or a link that leads nowhere.
    """
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise UserError(f"{folder} is the folder of a class and must hold files, got {path}/")
        if not path.exists():
            raise UserError(f"{path} is a link that leads nowhere; remove it, or what it names is")


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files as records, by index.

    Attributes:
      folder: Where the folders of the classes are.
      names: The files, as paths inside it.
      labels: The classes.
    """

    folder: Path
    names: np.ndarray
    labels: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.folder / self.names[index]
        return {"image": path.read_bytes(), "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """Return what to call a record in a message."""
        return str(self.folder / self.names[index])


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Takes the place of a TFDS builder; there is nothing to prepare.

    Attributes:
      folder: It holds a folder for each split.
      classes: Names of the classes, by label.
    """

    folder: Path
    classes: tuple[str, ...]

    def is_prepared(self) -> bool:
        """Whether it can be opened: always."""
        return True

    def source(self, split: str) -> ImageFiles:
        """Return the images of ``"train"`` or ``"val"``.

        Raises:
          UserError: the classes are not those expected, or one has no images.
        """
        folder = _split_folder(self.folder, split)
        places = class_folders(folder)
        _check_classes(folder, [place.name for place in places], self.classes)
        images = list_images(folder, places)
        for place in set(range(len(places))) - set(images.labels.tolist()):
            raise UserError(
                f"{places[place]} must hold images, got none; remove the class or fill it"
            )
        return images


def list_images(folder: Path, places: Sequence[Path]) -> ImageFiles:
    """Return the images of classes, in order.

    Args:
      folder: Where the folders of the classes are.
      places: These folders, in the order of the labels.

    Raises:
      UserError: a folder of a class holds something else than files.
    """
    names, labels = [], []
    for label, place in enumerate(places):
        check_flat(place)
        files = image_files(place)
        names += [f"{place.name}/{file.name}" for file in files]
        labels += [label] * len(files)
    return ImageFiles(folder, np.array(names, np.str_), np.array(labels, np.int64))


def _split_folder(folder: Path, split: str) -> Path:
    for name in _SPLITS[split]:
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"{folder} must hold {_LAYOUT}; there is no {' or '.join(_SPLITS[split])}")


def _check_classes(folder: Path, found: list[str], expected: tuple[str, ...]) -> None:
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more:
        what = [f"{name} is missing" for name in missing] + [f"{name} is new" for name in more]
        some = ", ".join(what[:5]) + (f" and {len(what) - 5} more" if len(what) > 5 else "")
        raise UserError(f"{folder} must hold the {len(expected)} classes of training: {some}")


def find_classes(data: ImagesConfig) -> tuple[str, ...]:
    """Return the names of the classes in the folder of training images.

    Raises:
      UserError: there is no such folder, or no class in it.
    """
    if data.dir is None:
        raise UserError(f"image_folder needs --data.dir DIR, which holds {_LAYOUT}")
    folder = _split_folder(data.dir.expanduser(), "train")
    names = tuple(place.name for place in class_folders(folder))
    if not names:
        raise UserError(f"{folder} must hold a folder of images for each class, got none")
    return names


def get_spec(data: ImagesConfig) -> LabelledImages:
    """Return the data set of a folder; its classes are as configured, else as found there.

    Raises:
      UserError: neither tells the classes.
    """
    classes = data.classes or find_classes(data)
    return LabelledImages(
        name="image_folder",
        channels=3,
        class_names=classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_split="train",
        test_split="val",
        builder=lambda _, folder: _open(folder, classes),
    )


def _open(folder: Path | None, classes: tuple[str, ...]) -> ImageFolder:
    if folder is None:
        raise UserError(f"image_folder needs --data.dir DIR, which holds {_LAYOUT}")
    return ImageFolder(folder.expanduser(), classes)
