"""Folders of images and label maps: ADE20K's own, and users' in the same form.

    FOLDER/images/training/NAME.jpg          or images/train
    FOLDER/annotations/training/NAME.png     or labels/train
    FOLDER/images/validation/...             or images/val, with its label maps

Which classes there are says ``objectInfo150.txt`` (ADE20K: 0 in its label maps stands for pixels
without a label, and its classes count from 1), or ``classes.txt``: a name a line, the first of
class 0; 255 then stands for pixels without a label.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps

_SPLITS = {"train": ("training", "train"), "val": ("validation", "val")}
_IMAGES, _LABELS = ("images",), ("annotations", "labels")
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_ADE20K_CLASSES, _OWN_CLASSES = "objectInfo150.txt", "classes.txt"
_ARCHIVE = "ADEChallengeData2016"
_MOST_CLASSES = 255  # of label maps of 8 bits, one number standing for no label


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """Pairs of files.

    Attributes:
      images: Files of the images, sorted by name.
      labels: File of the label map of each.
    """

    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return both files as they are."""
        return {
            "image": self.images[index].read_bytes(),
            "label": self.labels[index].read_bytes(),
        }

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.images[index])


def get_label_maps(data: LabelMapsConfig) -> LabelMaps:
    """Return the data set in a folder.

    Raises:
      UserError: the folder is not there or not of the form above; the message says what is missing.
    """
    if data.dir is None:
        raise UserError("give --data.dir: the folder of images and label maps (or of ADE20K)")
    folder = data.dir.expanduser()
    if not folder.is_dir():
        raise UserError(f"--data.dir must be a folder, got {folder}")
    if (folder / _ARCHIVE).is_dir():
        folder /= _ARCHIVE
    is_ade20k = (folder / _ADE20K_CLASSES).is_file()
    return LabelMaps(
        name="ade20k" if is_ade20k else folder.name,
        class_names=_ade20k_names(folder) if is_ade20k else _own_names(folder),
        open=lambda split: open_split(folder, split),
        zero_is_nothing=is_ade20k,
    )


def _own_names(folder: Path) -> tuple[str, ...]:
    path = folder / _OWN_CLASSES
    if not path.is_file():
        raise UserError(
            f"{folder} must hold {_OWN_CLASSES}, with the name of a class on each line, or"
            f" ADE20K's {_ADE20K_CLASSES}; it has neither"
        )
    names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    if not 1 < len(names) <= _MOST_CLASSES:
        raise UserError(f"{path} must name 2 to {_MOST_CLASSES} classes, got {len(names)}")
    return names


def _ade20k_names(folder: Path) -> tuple[str, ...]:
    """Names of the official table, whose columns are parted by tabs: number first, names last."""
    path = folder / _ADE20K_CLASSES
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
    names = {int(row[0]): row[-1].strip() for row in rows if row[0].strip().isdecimal()}
    if not names or sorted(names) != list(range(1, len(names) + 1)) or len(names) > _MOST_CLASSES:
        raise UserError(f"{path} must number its classes from 1 on, got {len(names)} lines of that")
    return tuple(names[number] for number in sorted(names))


def open_split(folder: Path, split: str) -> FolderSplit:
    """Return the pairs of a split.

    Args:
      folder: The data set.
      split: ``"train"`` or ``"val"``.

    Raises:
      UserError: a folder is missing, or an image has no label map.
    """
    images = _find(folder, _IMAGES, _SPLITS[split])
    labels = _find(folder, _LABELS, _SPLITS[split])
    maps = {path.stem: path for path in labels.iterdir() if path.suffix.lower() == ".png"}
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files:
        raise UserError(f"{images} must hold images ({', '.join(_ENDINGS)}), got none")
    missing = [path.name for path in files if path.stem not in maps]
    if missing:
        raise UserError(
            f"{labels} must hold a label map NAME.png for every image; {len(missing)} of"
            f" {len(files)} images have none, {missing[0]} first"
        )
    return FolderSplit(tuple(files), tuple(maps[path.stem] for path in files))


def _find(folder: Path, kinds: Iterable[str], splits: Iterable[str]) -> Path:
    places = [folder / kind / split for kind in kinds for split in splits]
    for place in places:
        if place.is_dir():
            return place
    names = " or ".join(str(place.relative_to(folder)) for place in places)
    raise UserError(f"{folder} must hold {names}, got neither")
