"""ADE20K as TFDS prepares it, in the small."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import get_label_maps
from natjax.train.tasks.segmentation.pairs import decode_pair


def _png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    out.seek(0)
    return out


class SceneParse150(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS's features of that name, with three small images a split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "annotation": tfds.features.Image(encoding_format="png", shape=(None, None, 1)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples() for name in ("train", "test")}

    def _generate_examples(self):
        for i in range(3):
            image = np.full((4, 5, 3), 50 * i, np.uint8)
            yield i, {"image": _png(image), "annotation": _png(np.full((4, 5), i, np.uint8))}


@pytest.mark.filterwarnings("ignore")  # of TFDS, as it writes
def test_prepared_scenes(tmp_path):
    builder = SceneParse150(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    maps = get_label_maps(LabelMapsConfig(name="scene_parse150", dir=tmp_path))
    assert len(maps.class_names) == 150
    source = maps.open("val")
    assert len(source) == 3
    pairs = [
        decode_pair(source[i], source.name(i), 150, zero_is_nothing=maps.zero_is_nothing)
        for i in range(3)
    ]
    found = {int(p["image"][0, 0, 0]): int(p["label"][0, 0]) for p in pairs}
    assert found == {0: 255, 50: 0, 100: 1}
    assert source.name(2) == "scene_parse150 test image 2"


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="as TFDS prepares it; or take the official archive"):
        get_label_maps(LabelMapsConfig(name="scene_parse150", dir=tmp_path))
