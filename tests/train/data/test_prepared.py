import json
import shutil
import sys

import imagenet_tar
import pytest

from natjax.train.data.prepared import find_version, open_version
from natjax.train.errors import UserError
from natjax.train.tasks.classification.datasets.held_out import open_held_out
from natjax.train.tasks.classification.datasets.imagenet_prepare import prepare


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_tar.write_archive(folder / "tars", [imagenet_tar.photo(i) for i in range(3)])
    return prepare(folder / "tars", folder, partial=True)


@pytest.fixture
def version(original, tmp_path):
    shutil.copytree(original, tmp_path / "imagenet2012" / "5.1.0")
    return tmp_path / "imagenet2012" / "5.1.0"


def change(path, edit):
    described = json.loads(path.read_text())
    edit(described)
    path.write_text(json.dumps(described))


def test_the_newest_version_is_found(version, tmp_path):
    for place in (tmp_path, version.parent, version):
        assert find_version(place, "imagenet2012") == version
    shutil.copytree(version, version.parent / "5.10.0")
    assert find_version(tmp_path, "imagenet2012") == version.parent / "5.10.0"
    assert find_version(tmp_path / "nowhere", "imagenet2012") is None


def test_no_code_is_imported_by_name(version, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    name = "hostile.Text"
    change(
        version / "features.json",
        lambda x: x["featuresDict"]["features"]["file_name"].update(pythonClassName=name),
    )
    with pytest.raises(UserError, match=r"features of TFDS itself, got 'hostile\.Text'"):
        open_held_out(version)
    assert "hostile" not in sys.modules


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"pythonClassName": 3}'])
def test_damaged_descriptions(version, name, text):
    (version / name).write_text(text)
    with pytest.raises(UserError, match=r"5\.1\.0 (is not as TFDS prepares|must have features of)"):
        open_version(version)


def test_other_features(version):
    change(version / "features.json", lambda x: x["featuresDict"]["features"].pop("label"))
    with pytest.raises(UserError, match="must have image and label, got file_name, image"):
        open_version(version)
