"""Fashion-MNIST from its original IDX files.

60000 + 10000 gray photographs of clothing, 28x28, ten classes. Source: H. Xiao, K. Rasul, R.
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from natjax.train.data.idx import read_idx
from natjax.train.data.images import encode_png
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_SIDE = 28
_PREFIX = {"train": "train", "test": "t10k"}
_HOW_TO_GET = (
    "install Debian's package dataset-fashion-mnist and pass"
    " --data.dir /usr/share/datasets/fashion-mnist"
)


# Unregistered: TFDS has one of this name, which downloads.
class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder over a folder with the four IDX files, gzipped or not."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

    def __init__(self, *, original: Path | None, **options: Any):
        """Remember the folder of the IDX files; None is enough to read a prepared set."""
        self._original = original
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs of clothing, 28x28, gray.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(SPEC.class_names)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = _folder(self._original)
        return {split: self._generate_examples(*read_split(folder, split)) for split in _PREFIX}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield index, {"image": encode_png(pixels), "label": label}


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images ``uint8[N, 28, 28]`` and labels ``uint8[N]`` of ``"train"`` or ``"test"``.

    Raises:
      UserError: a file is missing or malformed, or the two do not fit together.
    """
    image_file, label_file = _files(folder, split)
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise UserError(f"{image_file} must hold 28x28 images, got {images.shape[1:]}")
    if len(images) != len(labels) or not len(labels):
        raise UserError(
            f"{label_file} must have a label for each image, got {len(labels)} for {len(images)}"
        )
    if labels.max() >= len(SPEC.class_names):
        raise UserError(f"{label_file} must hold labels from 0 to 9, got {labels.max()}")
    return images, labels


def _folder(original: Path | None) -> Path:
    if original is None:
        raise UserError(f"fashion_mnist needs its original files: {_HOW_TO_GET}")
    return original.expanduser()


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    return tuple(
        _existing(folder, f"{_PREFIX[split]}-{what}-ubyte")
        for what in ("images-idx3", "labels-idx1")
    )


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise UserError(f"{folder} has no {name}.gz: {_HOW_TO_GET}")


def _check_original(original: Path | None) -> None:
    for split in _PREFIX:
        _files(_folder(original), split)


SPEC = LabelledImages(
    name="fashion_mnist",
    channels=1,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.286,),
    std=(0.353,),
    train_split="train",
    test_split="test",
    border=2 / _SIDE,  # to 32 pixels, which halve evenly
    builder=lambda prepared, original: FashionMnist(
        data_dir=prepared, file_format="array_record", original=original
    ),
    check_original=_check_original,
)


def get_spec(_: ImagesConfig) -> LabelledImages:
    """Return the data set."""
    return SPEC
