"""The one interface between label maps and the task, and the list of data sets."""

import dataclasses
import importlib
import typing
from collections.abc import Callable
from typing import Any

from natjax.train.errors import UserError, did_you_mean

if typing.TYPE_CHECKING:
    from natjax.train.tasks.segmentation.config import LabelMapsConfig

# Of ImageNet, of pixels in [0, 1]; mmsegmentation writes them in units of 1/255.
IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


@typing.runtime_checkable
class PairSource(typing.Protocol):
    """Images with label maps, with random access.

    A record has ``image`` and ``label``: encoded files, or uint8 pixels [H, W, 3] and [H, W].
    """

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a record."""
        ...

    def name(self, index: int) -> str:
        """Return what to call a record in messages."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelMaps:
    """What the task needs to know of a data set.

    Attributes:
      name: As in the settings.
      class_names: Name of each class.
      open: ``split -> records`` of ``"train"`` and ``"val"``.
      zero_is_nothing: Whether 0 in label maps stands for pixels without a label, and classes are
        counted from 1, as in ADE20K. Otherwise 255 stands for them, and classes count from 0.
      mean: Mean of each channel, of pixels in [0, 1].
      std: Standard deviation of each channel, of pixels in [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    open: Callable[[str], PairSource]
    zero_is_nothing: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


# Module of each data set, with its own `get_label_maps`.
_HOME = {
    "label_maps": "natjax.train.tasks.segmentation.datasets.folders",
    "scene_parse150": "natjax.train.tasks.segmentation.datasets.scene_parse",
    "digit_scenes": "natjax.train.tasks.segmentation.datasets.digit_scenes",
}


def get_label_maps(data: "LabelMapsConfig") -> LabelMaps:
    """Return the data set that is configured.

    Raises:
      UserError: there is none of this name, or its files are missing or wrong.
    """
    if data.name not in _HOME:
        near = did_you_mean(data.name, _HOME)
        raise UserError(f"unknown data set {data.name!r}{near}; data sets are {', '.join(_HOME)}")
    return importlib.import_module(_HOME[data.name]).get_label_maps(data)
