"""Folders of images and label maps, and what is wrong with those that are none."""

import shutil

import numpy as np
import pytest
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.segmentation.config import LabelMapsConfig
from natjax.train.tasks.segmentation.datasets.registry import get_label_maps
from natjax.train.tasks.segmentation.pairs import LabelError, decode_pair


def _write(folder, *, images="images", labels="labels", splits=("train", "val"), raw=1):
    for split in splits:
        for kind in (images, labels):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for name in ("b", "a"):
            Image.new("RGB", (6, 4), "red").save(folder / images / split / f"{name}.jpg")
            label = np.full((4, 6), raw, np.uint8)
            Image.fromarray(label).save(folder / labels / split / f"{name}.png")
    return folder


def _open(folder):
    return get_label_maps(LabelMapsConfig(name="label_maps", dir=folder))


@pytest.fixture
def own(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nsea\n\n")
    return _write(tmp_path)


@pytest.fixture
def ade20k(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    folder.mkdir()
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.2\t9\t1\t1\twall", "2\t0.1\t9\t1\t1\tsky"]
    (folder / "objectInfo150.txt").write_text("\n".join(rows))
    _write(folder, labels="annotations", splits=("training", "validation"), raw=2)
    return tmp_path


def _decoded(maps, split, index=0):
    source = maps.open(split)
    return decode_pair(
        source[index],
        source.name(index),
        len(maps.class_names),
        zero_is_nothing=maps.zero_is_nothing,
    )


def test_own_folder(own):
    maps = _open(own)
    assert maps.class_names == ("sky", "sea")
    source = maps.open("train")
    assert len(source) == 2
    assert source.name(0).endswith("images/train/a.jpg")
    pair = _decoded(maps, "val")
    assert pair["image"].shape == (4, 6, 3)
    assert set(pair["label"].ravel().tolist()) == {1}


def test_ade20k(ade20k):
    for folder in (ade20k, ade20k / "ADEChallengeData2016"):
        maps = _open(folder)
        assert (maps.name, maps.class_names) == ("ade20k", ("wall", "sky"))
        assert set(_decoded(maps, "val")["label"].ravel().tolist()) == {1}


def _change(folder, **labels):
    for name, label in labels.items():
        Image.fromarray(label).save(folder / "labels" / "train" / f"{name}.png")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((4, 6), 2, np.uint8), r"a\.jpg has the label 2; labels must be in 0 to 1, or 255"),
        (np.zeros((4, 5), np.uint8), r"a\.jpg must be of the image's size, 6 x 4; got 5 x 4"),
        (np.zeros((4, 6, 3), np.uint8), r"a\.jpg must have one channel .* mode RGB"),
    ],
)
def test_label_maps_that_cannot_be_meant(own, label, message):
    _change(own, a=label)
    with pytest.raises(LabelError, match=message):
        _decoded(_open(own), "train")


def test_numbers_of_palettes_count_and_pixels_without_label(own):
    picture = Image.frombytes("P", (6, 4), bytes([0, 1, 255] * 8))
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(own / "labels" / "train" / "a.png")
    label = _decoded(_open(own), "train")["label"]
    assert label[0].tolist() == [0, 1, 255, 0, 1, 255]


def test_zero_of_ade20k_is_no_label_and_too_large_numbers_are_named(ade20k):
    folder = ade20k / "ADEChallengeData2016"
    path = folder / "annotations" / "training" / "a.png"
    Image.fromarray(np.array([[0, 1, 2] * 2] * 4, np.uint8)).save(path)
    assert _decoded(_open(ade20k), "train")["label"][0].tolist() == [255, 0, 1, 255, 0, 1]
    Image.fromarray(np.full((4, 6), 3, np.uint8)).save(path)
    with pytest.raises(LabelError, match=r"has the label 3; labels must be in 1 to 2, or 0 for no"):
        _decoded(_open(ade20k), "train")


def test_what_is_missing_is_said(own):
    (own / "labels" / "train" / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have none, b\.jpg first"):
        _open(own).open("train")
    shutil.rmtree(own / "images" / "val")
    with pytest.raises(UserError, match="images/validation or images/val"):
        _open(own).open("val")
    (own / "classes.txt").write_text("sky")
    with pytest.raises(UserError, match="must name 2 to 255 classes, got 1"):
        _open(own)
    (own / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt.*it has neither"):
        _open(own)
    with pytest.raises(UserError, match="must be a folder"):
        _open(own / "nowhere")
    with pytest.raises(UserError, match=r"give --data\.dir"):
        _open(None)


def test_unknown_data_sets():
    with pytest.raises(UserError, match="did you mean 'label_maps'"):
        get_label_maps(LabelMapsConfig(name="label_map"))
