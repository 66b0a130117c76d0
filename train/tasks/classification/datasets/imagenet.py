"""ImageNet (ILSVRC 2012): 1,281,167 + 50,000 photos of 1000 classes, as TFDS prepares it.

Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

from pathlib import Path
from typing import Any

from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError
from natjax.train.files import cache_folder
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.imagenet_tars import ARCHIVES, synsets
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_NAME = "imagenet2012"
_SPLITS = ("train", "validation")


def _not_prepared(root: Path, original: Path | None) -> UserError:
    here = original is not None and any((original / x.file).is_file() for x in ARCHIVES)
    command = f"natjax data prepare {_NAME} --manual-dir {original if here else 'DIR'}"
    if root != cache_folder():
        command += f" --prepared-dir {root}"
    where = "" if here else f", where DIR holds {ARCHIVES[0].file} and {ARCHIVES[1].file}"
    return UserError(f"{_NAME} is not prepared in {root}; run: {command}{where}")


def _open(prepared: Path, original: Path | None) -> Any:
    original = original and original.expanduser()
    places = (prepared / _NAME, *([original] if original else []))
    version = next(filter(None, (find_version(place, _NAME) for place in places)), None)
    if version is None:
        raise _not_prepared(prepared, original)
    builder = open_version(version)
    classes = builder.info.features["label"].num_classes
    if classes != len(synsets()):
        raise UserError(f"{version} must have {len(synsets())} classes, got {classes}")
    for split in _SPLITS:
        if split not in builder.info.splits:
            found = ", ".join(builder.info.splits)
            raise UserError(f"{version} must have the split {split!r}, got {found}")
    return builder


def get_spec(_: ImagesConfig) -> LabelledImages:
    """Return the data set."""
    return LabelledImages(
        name=_NAME,
        channels=3,
        class_names=synsets(),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_split=_SPLITS[0],
        test_split=_SPLITS[1],
        builder=_open,
    )
