"""What classification knows of a data set, and the list of data sets.

A data set of labelled images is a `LabelledImages`: how to open it, how to decode one image, how to
normalise, and the names of its classes. Pipeline, step, evaluation and prediction know nothing
more. What is random about training images is the run's: `AugmentConfig`.
"""

import dataclasses
import importlib
from collections.abc import Callable

from natjax.train.data.datasets import DatasetSpec
from natjax.train.errors import UserError, did_you_mean
from natjax.train.tasks.classification.config import ImagesConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledImages(DatasetSpec):
    """A data set of labelled images.

    Attributes:
      channels: 1 (gray) or 3 (RGB).
      class_names: Name of each label.
      mean: Mean of each channel, of pixels in [0, 1].
      std: Standard deviation of each channel, of pixels in [0, 1].
      border: Black added around every image before anything else, as a part of its short side.
    """

    channels: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    border: float = 0.0


type GetSpec = Callable[[ImagesConfig], LabelledImages]

_FOLDER = "natjax.train.tasks.classification.datasets"
# Imported on use, since builders import TFDS: modules with a `get_spec` of their own.
_MODULES = {
    "digits": f"{_FOLDER}.digits",
    "fashion_mnist": f"{_FOLDER}.fashion_mnist",
    "emoji": f"{_FOLDER}.emoji",
    "imagenet2012": f"{_FOLDER}.imagenet",
    "image_folder": f"{_FOLDER}.image_folder",
}
_REGISTERED: dict[str, GetSpec] = {}


def register_dataset(name: str, get_spec: GetSpec) -> None:
    """Add a data set of one's own, so that ``--data.name`` finds it.

    Args:
      name: A new name.
      get_spec: Called with the settings of a run.

    Raises:
      UserError: there is a data set of this name.
    """
    if name in dataset_names():
        raise UserError(f"there is a data set {name!r} already; choose another name")
    _REGISTERED[name] = get_spec


def dataset_names() -> list[str]:
    """Return the names that `get_spec` knows."""
    return [*_MODULES, *_REGISTERED]


def get_spec(data: ImagesConfig) -> LabelledImages:
    """Return the data set that is configured.

    Raises:
      UserError: there is none of this name, and near names are suggested; or its classes are to be
        found in a folder and cannot be.
    """
    if data.name in _REGISTERED:
        return _REGISTERED[data.name](data)
    if data.name not in _MODULES:
        known = dataset_names()
        near = did_you_mean(data.name, known)
        raise UserError(f"unknown data set {data.name!r}{near}; data sets are {', '.join(known)}")
    return importlib.import_module(_MODULES[data.name]).get_spec(data)


def with_classes(data: ImagesConfig) -> ImagesConfig:
    """Return the configuration with the names of its classes, where a folder defines them.

    So they are saved with a run, which then knows them wherever it is taken.
    """
    if data.name != "image_folder" or data.classes:
        return data
    return dataclasses.replace(data, classes=get_spec(data).class_names)
