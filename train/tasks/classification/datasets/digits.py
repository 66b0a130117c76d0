"""The 8x8 handwritten digits that scikit-learn carries: real handwriting without a download.

1797 images; 360 are held out, drawn by a fixed permutation. Source: E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from natjax.train.data.images import encode_png
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import LabelledImages

_TEST_SIZE = 360
_DARKEST = 16  # the original counts, in 4x4 blocks, of inked pixels


# Unregistered: TFDS names are global, and others may have a data set of this name.
class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder; reads scikit-learn's own copy."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8, gray.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(SPEC.class_names)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        # The legacy generator's stream is frozen for ever, so the held-out images are too.
        order = np.random.RandomState(0).permutation(len(labels))
        test, train = order[:_TEST_SIZE], order[_TEST_SIZE:]
        return {
            name: self._generate_examples(images, labels, chosen)
            for name, chosen in (("train", train), ("test", test))
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in chosen.tolist():
            pixels = np.rint(images[index].reshape(8, 8) * (255 / _DARKEST)).astype(np.uint8)
            yield index, {"image": encode_png(pixels), "label": int(labels[index])}


SPEC = LabelledImages(
    name="digits",
    channels=1,
    class_names=tuple("0123456789"),
    mean=(0.305,),
    std=(0.376,),
    train_split="train",
    test_split="test",
    builder=lambda prepared, _: Digits(data_dir=prepared, file_format="array_record"),
)


def get_spec(_: ImagesConfig) -> LabelledImages:
    """Return the data set."""
    return SPEC
