"""ADE20K as TFDS has prepared it: ``scene_parse150``, read without TensorFlow.

TFDS keeps label maps as they are, so 0 stands for pixels without a label; names of the classes it
does not have. Its split ``test`` is ADE20K's validation set.
"""

import dataclasses
from typing import Any

from natjax.train.data.datasets import Source, open_split, prepared_dir
from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import LabelMaps

NAME = "scene_parse150"
_FEATURES = ("image", "annotation")
_SPLITS = {"train": "train", "val": "test"}


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """Records of TFDS with our names.

    Attributes:
      source: The records.
      split: What TFDS calls the split.
    """

    source: Source
    split: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return both files as they are."""
        record = self.source[index]
        return {"image": record["image"], "label": record["annotation"]}

    def name(self, index: int) -> str:
        """Return what to call a record."""
        return f"{NAME} {self.split} image {index}"


def get_label_maps(data: LabelMapsConfig) -> LabelMaps:
    """Return the data set, prepared in ``--data.dir`` or among the prepared data sets.

    Raises:
      UserError: it is not there.
    """
    folder = prepared_dir(data) if data.dir is None else data.dir.expanduser()
    version = find_version(folder, NAME)
    if version is None:
        raise UserError(
            f"{folder} must hold {NAME} as TFDS prepares it; or take the official archive:"
            " --data.name label_maps --data.dir ADEChallengeData2016"
        )
    builder = open_version(version, _FEATURES)

    def opened(split: str) -> PreparedSplit:
        name = _SPLITS[split]
        if name not in builder.info.splits:
            have = ", ".join(builder.info.splits)
            raise UserError(f"{version} must have the split {name!r}, got {have}")
        return PreparedSplit(open_split(builder, name, _FEATURES), name)

    return LabelMaps(
        name="ade20k",
        class_names=tuple(f"class {number}" for number in range(1, 151)),
        open=opened,
        zero_is_nothing=True,
    )
