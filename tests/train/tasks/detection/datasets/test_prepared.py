"""COCO's images as TFDS prepares them, in the small."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets.registry import open_split


def _jpeg(gray):
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (gray,) * 3).save(out, "JPEG")
    out.seek(0)
    return out


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Some of TFDS's features of that name, with three small images a split."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]  # noqa: RUF012

    def _info(self):
        features = {"image": tfds.features.Image(encoding_format="jpeg"), "image/id": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples() for name in ("train", "validation")}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"image": _jpeg(50 * i), "image/id": 100 + i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    Coco(data_dir=folder, file_format="array_record", config="2017").download_and_prepare()
    return folder


@pytest.fixture
def official(tmp_path):
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": 32, "width": 32}
        for number in (102, 100, 7)
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations").mkdir()
    for name in ("train2017", "val2017"):
        (tmp_path / f"annotations/instances_{name}.json").write_text(json.dumps(content))
    return tmp_path


pytestmark = pytest.mark.filterwarnings("ignore")  # of TFDS, as it writes


def test_images_are_found_by_their_ids(prepared, official, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(official / "cache"))
    data = ObjectsConfig(name="coco/2017", dir=official, prepared_dir=prepared)
    for _ in range(2):  # the second time from what is kept
        split = open_split(data, "val")
        assert [int(split.image(i)[9, 9, 0]) for i in range(2)] == [100, 0]
        with pytest.raises(OSError, match=r"no image of the id of 7\.jpg"):
            split.image(2)
        assert split.name(0) == "coco/2017 validation 102.jpg"


def test_annotations_and_images_in_one_folder(prepared, official, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(official / "cache"))
    (official / "coco").symlink_to(prepared / "coco")
    split = open_split(ObjectsConfig(name="coco/2017", dir=official), "val")
    assert int(split.image(0)[9, 9, 0]) == 100


def test_what_is_not_there(prepared, tmp_path):
    data = ObjectsConfig(name="coco/2017", dir=tmp_path, prepared_dir=tmp_path)
    with pytest.raises(UserError, match="as TFDS prepares it; or take the official files"):
        open_split(data, "train")
    with pytest.raises(UserError, match=r"has no masks: give --data\.dir"):
        open_split(ObjectsConfig(name="coco/2017", prepared_dir=prepared), "train")
