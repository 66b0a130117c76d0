"""Data in COCO's format: COCO 2017 as it is published, and users' own.

    FOLDER/annotations/instances_train2017.json     or in annotations_trainval2017.zip
    FOLDER/annotations/instances_val2017.json
    FOLDER/train2017/NAME.jpg                       or train2017.zip, which is read in place
    FOLDER/val2017/NAME.jpg

Users' own have ``train`` and ``val`` in place of ``train2017`` and ``val2017``. Annotations may be
called like the folders of images (``annotations/train.json``), lie beside them (``train.json``), or
in them (``train/_annotations.coco.json``).
"""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from natjax.train import console
from natjax.train.data import file_cache
from natjax.train.data.prepared import locked
from natjax.train.errors import UserError
from natjax.train.files import cache_folder
from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets import annotations
from natjax.train.tasks.detection.datasets.annotations import Annotations
from natjax.train.tasks.detection.datasets.coco_json import read_annotations
from natjax.train.tasks.detection.datasets.images import (
    Folder,
    ImageFiles,
    Zip,
    members,
    read_member,
)
from natjax.train.tasks.detection.datasets.registry import Split

Stamp = Int64[np.ndarray, "F 2"]

_SPLITS = {"train": ("train2017", "train"), "val": ("val2017", "val")}
_FORMS = ("annotations/instances_{}.json", "annotations/{}.json", "{}.json", "instances_{}.json")
_IN_IMAGES = "{}/_annotations.coco.json"
_ARCHIVE = "annotations_trainval2017.zip"
# Changes when what is kept of a file changes.
_VERSION = "1"
_LARGEST = 2**34
_MANY_BYTES = 50_000_000
_NAMED = 8


def open_split(data: ObjectsConfig, split: str) -> Split:
    """Open a split of a folder.

    Args:
      data: The folder is ``dir``.
      split: ``"train"`` or ``"val"``.

    Raises:
      UserError: the folder is not of the form above, or its annotations cannot be used.
    """
    return open_folder(required_folder(data), split)


def open_folder(folder: Path, split: str) -> Split:
    """Open a split of a folder, as `open_split`."""
    found = read_split(folder, split)
    files = _image_files(folder, split, found)
    return Split(dataset=folder.resolve().name, annotations=found, files=files)


def required_folder(data: ObjectsConfig) -> Path:
    """Return the folder that is configured.

    Raises:
      UserError: none is, or it is not there.
    """
    if data.dir is None:
        raise UserError("give --data.dir: the folder of COCO, or of your own data in its format")
    folder = data.dir.expanduser()
    if not folder.is_dir():
        raise UserError(f"--data.dir must be a folder, got {folder}")
    return folder


def read_split(folder: Path, split: str) -> Annotations:
    """Return the annotations of a split of a folder; of a large file, from the second time on fast.

    Args:
      folder: As above.
      split: ``"train"`` or ``"val"``.

    Raises:
      UserError: they are not there, or cannot be used.
    """
    path, member = _find_annotations(folder, split)
    source = f"{path}/{member}" if member else str(path)
    kept = cache_folder() / "coco"
    name = hashlib.sha256(f"{_VERSION} {path.resolve()} {member}".encode()).hexdigest()[:32]
    stamp = file_cache.stamp([path])
    found = annotations.load(kept / name, stamp)
    if found is None:
        found = _read_once(path, member, source, kept / name, stamp)
    _tell_broken(found, source)
    return found


def _read_once(path: Path, member: str, source: str, kept: Path, stamp: Stamp) -> Annotations:
    """Read annotations and keep them; of several processes one does it, and the others wait."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.parent / f".{kept.name}.lock"):
            found = annotations.load(kept, stamp)
            if found is None:
                found = annotations.save(_read(path, member, source), kept, stamp)
            return found
    except OSError as error:  # storage that cannot be written to
        console.warn(f"the annotations of {source} are not kept for the next time: {error}")
        return _read(path, member, source)


def _read(path: Path, member: str, source: str) -> Annotations:
    try:
        data = read_member(path, member, _LARGEST) if member else path.read_bytes()
        if len(data) > _MANY_BYTES:
            console.say(f"Reading {source} (once)")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no JSON: {error}") from error
    except Exception as error:  # of damaged zips, nearly anything
        raise UserError(f"{source} cannot be read: {error}") from error
    del data
    return read_annotations(text, source)


def _tell_broken(found: Annotations, source: str) -> None:
    lines = found.broken.tobytes().decode().splitlines()
    for line in lines[:_NAMED]:
        console.warn(f"{source}: passed over {line}")
    if len(lines) > _NAMED:
        console.warn(f"{source}: passed over {len(lines) - _NAMED} more")


def _find_annotations(folder: Path, split: str) -> tuple[Path, str]:
    """The file of annotations of a split, and its name in a zip, if it is in one."""
    names = _SPLITS[split]
    for name in names:
        for form in (*_FORMS, _IN_IMAGES):
            path = folder / form.format(name)
            if path.is_file():
                return path, ""
    archive = folder / _ARCHIVE
    if archive.is_file():
        member = _FORMS[0].format(names[0])
        if member in members(archive):
            return archive, member
    tried = ", ".join(form.format(names[-1]) for form in _FORMS)
    raise UserError(
        f"{folder} must hold annotations/instances_{names[0]}.json (COCO), or {tried}; it has none"
    )


def _image_files(folder: Path, split: str, found: Annotations) -> ImageFiles:
    """The images of a split: a folder or a zip, whichever is there."""
    first = found.file(0)
    for name in _SPLITS[split]:
        for place in (folder / name, folder / "images" / name):
            if place.is_dir():
                return Folder(place)
        archive = folder / f"{name}.zip"
        if archive.is_file():
            return Zip(archive, _inside(archive, name, first))
    if (folder / "images").is_dir():
        return Folder(folder / "images")
    names = " or ".join(_SPLITS[split])
    raise UserError(f"{folder} must hold the images in a folder or zip {names}; it has neither")


def _inside(archive: Path, name: str, file: str) -> str:
    """Folder in a zip that images lie in."""
    known = set(members(archive))
    for inside in (f"{name}/", "", f"images/{name}/"):
        if inside + file in known:
            return inside
    raise UserError(f"{archive} must hold {name}/{file}, as the annotations say; it does not")
