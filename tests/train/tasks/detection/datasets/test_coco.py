"""Folders and zips in COCO's format, and what is wrong with those that are none."""

import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import ObjectsConfig
from natjax.train.tasks.detection.datasets import coco
from natjax.train.tasks.detection.datasets.images import checked_name, decode_upright, read_member
from natjax.train.tasks.detection.datasets.registry import check_same_classes, open_split

SPLITS = ("train2017", "val2017")


def _png(gray, size=(20, 30), **save):
    out = io.BytesIO()
    Image.new("RGB", size[::-1], (gray,) * 3).save(out, "PNG", **save)
    return out.getvalue()


def _text(**changes):
    images = [
        {"id": 10 * i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(1, 4)
    ]
    mask = {"size": [20, 30], "counts": [100, 50, 450]}
    common = {"category_id": 1, "bbox": [5, 0, 3, 20], "area": 50, "iscrowd": 0}
    objects = [{"id": 1, "image_id": 20, "segmentation": mask, **common}]
    content = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}],
    }
    return json.dumps(content | changes)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    """COCO's own layout."""
    (tmp_path / "annotations").mkdir()
    for name in SPLITS:
        (tmp_path / name).mkdir()
        (tmp_path / f"annotations/instances_{name}.json").write_text(_text())
        for i in range(1, 4):
            (tmp_path / name / f"{i}.png").write_bytes(_png(i))
    return tmp_path


def _open(folder, split="train"):
    return open_split(ObjectsConfig(name="coco", dir=folder), split)


def _check(split):
    assert len(split) == 3
    assert split.classes == ("cat",)
    assert [int(split.image(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert split.image(0).shape == (20, 30, 3)
    assert split.info(1) == (20, 20, 30, "2.png")
    objects = split.objects(1)
    assert objects.masks.sum() == 50
    np.testing.assert_array_equal(objects.mask(0), objects.masks[0])
    assert len(split.objects(0)) == 0


def test_folder_of_coco(folder):
    for split in ("train", "val"):
        _check(_open(folder, split))
    assert _open(folder).name(2).endswith("train2017/3.png")
    check_same_classes(_open(folder, "train"), _open(folder, "val"))


def test_zips_are_read_in_place(folder):
    for name in SPLITS:
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in (folder / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
        shutil.rmtree(folder / name)
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as archive:
        for path in (folder / "annotations").iterdir():
            archive.write(path, f"annotations/{path.name}")
    shutil.rmtree(folder / "annotations")
    split = _open(folder, "val")
    _check(split)
    assert split.name(0).endswith("val2017.zip/val2017/1.png")
    _check(pickle.loads(pickle.dumps(split)))


@pytest.mark.parametrize(
    "place", ["annotations/train.json", "train.json", "train/_annotations.coco.json"]
)
def test_own_data(folder, place):
    (folder / "train2017").rename(folder / "train")
    (folder / "annotations/instances_train2017.json").rename(folder / place)
    _check(_open(folder))


def test_annotations_are_read_once_and_shared(folder, monkeypatch):
    first = _open(folder)
    assert len(pickle.dumps(first)) < 2000  # a place, not arrays
    with monkeypatch.context() as patched:
        patched.setattr(coco, "_read", lambda *_: pytest.fail("read again"))
        _check(_open(folder))
    changed = _text(categories=[{"id": 1, "name": "dog"}])
    (folder / "annotations/instances_train2017.json").write_text(changed)
    assert _open(folder).classes == ("dog",)
    with pytest.raises(UserError, match="number 0 is 'dog' in training and 'cat' in evaluation"):
        check_same_classes(_open(folder, "train"), _open(folder, "val"))


def test_a_cache_that_cannot_be_written(folder, monkeypatch, capsys):
    blocked = folder / "file"
    blocked.write_text("")
    monkeypatch.setenv("NATJAX_DATA", str(blocked))
    split = _open(folder)
    assert "are not kept for the next time" in capsys.readouterr().err
    _check(split)
    _check(pickle.loads(pickle.dumps(split)))


def test_what_is_passed_over_is_told_each_time(folder, capsys):
    broken = [{"id": 7, "image_id": 99, "category_id": 1}]
    (folder / "annotations/instances_train2017.json").write_text(_text(annotations=broken))
    for _ in range(2):
        _open(folder)
        assert "passed over annotation 7: there is no usable image 99" in capsys.readouterr().err


def test_images_of_another_size_and_turned_ones(folder, monkeypatch):
    upright = _png(7, size=(30, 20), exif=_turned())
    assert decode_upright(upright, (20, 30)).shape == (20, 30, 3)
    assert decode_upright(upright, (30, 20)).shape == (30, 20, 3)
    with pytest.raises(OSError, match="annotations say 30 x 21 pixels, but the file has 20 x 30"):
        decode_upright(upright, (21, 30))
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
        with pytest.raises(OSError, match="annotations say 5 x 5 pixels"):
            decode_upright(upright, (5, 5))
    (folder / "train2017/1.png").write_bytes(_png(1, size=(5, 5)))
    with pytest.raises(OSError, match="annotations say 30 x 20 pixels"):
        _open(folder).image(0)


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return exif


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "C:/x", "a\\..\\x", "\\x"])
def test_file_names_stay_in_the_folder(name):
    with pytest.raises(OSError, match="must stay in the folder"):
        checked_name(name)
    assert checked_name("a/b..c.jpg") == "a/b..c.jpg"


def test_members_of_zips(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1000))
    assert read_member(path, "a", 1000) == bytes(1000)
    with pytest.raises(OSError, match=r"must be at most 999 bytes, got 1000"):
        read_member(path, "a", 999)
    with pytest.raises(FileNotFoundError, match="has no b"):
        read_member(path, "b", 999)


def test_what_is_missing_is_said(folder):
    (folder / "val2017").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="in a folder or zip val2017 or val; it has neither"):
        _open(folder, "val")
    (folder / "val2017.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"val2017\.zip cannot be read as a zip"):
        _open(folder, "val")
    with zipfile.ZipFile(folder / "val.zip", "w") as archive:
        archive.writestr("other.png", b"")
    (folder / "val2017.zip").unlink()
    with pytest.raises(UserError, match=r"val\.zip must hold val/1\.png"):
        _open(folder, "val")
    (folder / "annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"annotations/instances_val2017\.json \(COCO\), or"):
        _open(folder, "val")
    (folder / "annotations/instances_train2017.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"instances_train2017\.json is no JSON"):
        _open(folder)
    with pytest.raises(UserError, match="must be a folder"):
        _open(folder / "nowhere")
    with pytest.raises(UserError, match=r"give --data\.dir"):
        _open(None)
    with pytest.raises(UserError, match="did you mean 'coco'"):
        open_split(ObjectsConfig(name="cocoo"), "train")
