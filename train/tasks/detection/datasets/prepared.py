"""COCO's images as TFDS has prepared them (``coco/2017``), read without TensorFlow.

TFDS has left out the masks. So the annotations are the official ones, of ``--data.dir``, and only
the images come from TFDS, each found by its id.
"""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from natjax.train import console
from natjax.train.data import file_cache
from natjax.train.data.datasets import Source, prepared_dir
from natjax.train.data.datasets import open_split as open_source
from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError
from natjax.train.files import cache_folder
from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets import coco
from natjax.train.tasks.detection.datasets.annotations import Annotations
from natjax.train.tasks.detection.datasets.registry import Split

NAME = "coco/2017"
_FEATURES = ("image", "image/id")
_SPLITS = {"train": "train", "val": "validation"}
_KEPT = "ids"
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class PreparedImages:
    """Images of a split of TFDS.

    Attributes:
      source: The records.
      places: Record of each image of the annotations; -1 where there is none.
      split: What TFDS calls the split.
    """

    source: Source
    places: Int64[np.ndarray, " I"]
    split: str

    def read(self, row: int, file: str) -> bytes:
        """Return an image.

        Raises:
          OSError: TFDS has none of its id.
        """
        if self.places[row] < 0:
            raise OSError(f"the prepared data set has no image of the id of {file}")
        return self.source[int(self.places[row])]["image"]

    def name(self, row: int, file: str) -> str:
        """Return what to call an image in messages."""
        del row
        return f"{NAME} {self.split} {file}"


def open_split(data: ObjectsConfig, split: str) -> Split:
    """Open a split.

    Args:
      data: The annotations are in ``dir``, as `natjax.train.tasks.detection.datasets.coco` says,
        the images there or among the prepared data sets.
      split: ``"train"`` or ``"val"``.

    Raises:
      UserError: either is not there.
    """
    version = _find_version(data)
    if data.dir is None:
        raise UserError(
            f"{NAME} of TFDS has no masks: give --data.dir, a folder with the official"
            " annotations/instances_train2017.json and instances_val2017.json"
        )
    found = coco.read_split(coco.required_folder(data), split)
    builder = open_version(version, _FEATURES)
    name = _SPLITS[split]
    if name not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise UserError(f"{version} must have the split {name!r}, got {have}")
    source = open_source(builder, name)
    places = _places(found, _ids(source, version, name))
    return Split(dataset=NAME, annotations=found, files=PreparedImages(source, places, name))


def _find_version(data: ObjectsConfig) -> Path:
    root = prepared_dir(data)
    for folder in (root, *([] if data.dir is None else [data.dir.expanduser()])):
        version = find_version(folder, NAME)
        if version is not None:
            return version
    raise UserError(
        f"{root} or --data.dir must hold {NAME} as TFDS prepares it; or take the official files:"
        " --data.name coco --data.dir FOLDER"
    )


def _ids(source: Source, version: Path, split: str) -> Int64[np.ndarray, " N"]:
    """Id of every record; found out once, since all records are read for it."""
    info = version / "dataset_info.json"
    name = hashlib.sha256(f"{version.resolve()} {split}".encode()).hexdigest()[:32]
    kept, stamp = cache_folder() / "coco" / f"{name}.npz", file_cache.stamp([info])
    known = file_cache.load(kept, stamp, [_KEPT])
    if known is not None and known[_KEPT].shape == (len(source),):
        return known[_KEPT]
    waiting = console.waiting(f"Finding {len(source):,} images of {version} (once)")
    with waiting, ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda i: int(source[i]["image/id"]), range(len(source)))
        ids = np.fromiter(found, np.int64, len(source))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        file_cache.save(kept, stamp, {_KEPT: ids})
    except OSError as error:  # found out again the next time
        console.warn(f"the ids of the prepared images are not kept: {error}")
    return ids


def _places(annotations: Annotations, ids: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " I"]:
    """Record of each image, by its id."""
    order = np.argsort(ids)
    found = np.searchsorted(ids[order], annotations.image_ids)
    found = np.minimum(found, len(ids) - 1)
    there = ids[order][found] == annotations.image_ids
    return np.where(there, order[found], -1)
