"""Batches of images with objects: which images, which sizes, what is in them."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from natjax.train.cluster.processes import Host
from natjax.train.errors import UserError
from natjax.train.tasks.detection.config import AugmentConfig, DetectionConfig, ObjectsConfig
from natjax.train.tasks.detection.datasets.coco import open_folder
from natjax.train.tasks.detection.examples import (
    eval_batches,
    eval_records,
    train_batches,
    train_records,
    view,
)

WIDE, TALL = (40, 60), (60, 40)
# Wide images have even ids, tall ones odd ids.
COUNT = 12


def _object(number, image, **changes):
    # One box per image, whose left border is the image's id.
    box = {"bbox": [image, 4, 20, 16], "area": 320}
    corners = [[image, 4, image + 20, 4, image + 20, 20, image, 20]]
    entry = {"id": number, "image_id": image, "category_id": 1, **box, "segmentation": corners}
    return entry | changes


def _write(folder, objects, damaged=()):
    images = []
    (folder / "train").mkdir()
    for number in range(COUNT):
        size = TALL if number % 2 else WIDE
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
        )
        out = io.BytesIO()
        Image.new("RGB", size[::-1], (10 * number + 5,) * 3).save(out, "PNG")
        data = out.getvalue()
        cut = len(data) // 2 if number in damaged else None
        (folder / f"train/{number}.png").write_bytes(data[:cut])
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def split(tmp_path):
    return open_folder(_write(tmp_path, [_object(i, i) for i in range(COUNT)]), "train")


HOW = AugmentConfig(
    frame=(90, 64),
    sides=(32, 48, 64),
    crop_sides=(40,),
    crop_range=(30, 40),
    buckets=((32, 64), (64, 96)),
)


def _config(**changes):
    config = DetectionConfig(augment=HOW, data=ObjectsConfig(objects=3), batch_size=4, seed=5)
    return dataclasses.replace(config, **changes)


def _train(split, count, start=0, host=None, **changes):
    config = _config(**changes)
    batches = train_batches(train_records(split), config, start, host or Host())
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def _ids(batch):
    """Which images a batch has, by their shade of gray."""
    return [int(image[0, 0, 0]) // 10 for image in batch["image"]]


def _same(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])
        assert batch[name].dtype == other[name].dtype


def test_shapes_and_types(split):
    for batch in _train(split, 8):
        height, width = batch["image"].shape[1:3]
        assert {name: (values.shape, str(values.dtype)) for name, values in batch.items()} == {
            "image": ((4, height, width, 3), "uint8"),
            "size": ((4, 2), "int32"),
            "boxes": ((4, 3, 4), "float32"),
            "label": ((4, 3), "int32"),
            "valid": ((4, 3), "bool"),
            "masks": ((4, 3, height, width // 8), "uint8"),
        }


def test_batches_are_of_few_sizes_and_of_images_that_lie_alike(split):
    shapes = set()
    for batch in _train(split, 40):
        assert len({number % 2 for number in _ids(batch)}) == 1
        shapes.add(batch["image"].shape[1:3])
        assert (batch["size"] <= batch["image"].shape[1:3]).all()
    assert shapes == {(32, 64), (64, 32), (64, 96), (96, 64)}


def test_every_image_comes_once_in_an_epoch(split):
    """Three batches of each group are an epoch of both; the next has another order."""
    epochs = [
        [number for batch in _train(split, 6, start, batch_size=2) for number in _ids(batch)]
        for start in (0, 6)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(COUNT))
    assert epochs[0] != epochs[1]


def test_groups_take_turns_in_proportion(tmp_path):
    """Of twelve images, those with objects: six wide ones and two tall ones."""
    objects = [_object(i, i) for i in (0, 1, 2, 3, 4, 6, 8, 10)]
    split = open_folder(_write(tmp_path, objects), "train")
    kinds = [_ids(batch)[0] % 2 for batch in _train(split, 40, batch_size=1)]
    assert sum(kinds) == 10
    assert all(sum(kinds[i : i + 4]) == 1 for i in range(0, 40, 4))


def test_a_batch_is_a_function_of_seed_and_step(split):
    whole = _train(split, 6)
    for step, batch in enumerate(_train(split, 3, start=3), start=3):
        _same(batch, whole[step])
    halves = [_train(split, 6, host=Host(index, 2)) for index in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        _same(batch, {name: np.concatenate([first[name], second[name]]) for name in batch})
    assert [_ids(batch) for batch in whole] != [_ids(batch) for batch in _train(split, 6, seed=6)]


@pytest.mark.slow
def test_workers_make_the_same_batches(split):
    data = ObjectsConfig(objects=3, workers=2)
    for batch, other in zip(_train(split, 4), _train(split, 4, data=data), strict=True):
        _same(batch, other)


def test_boxes_and_masks_of_a_batch(split):
    how = dataclasses.replace(HOW, crop=0.0, hflip=0.0, sides=(40,))
    for batch in _train(split, 4, augment=how):
        for row, number in enumerate(_ids(batch)):
            assert batch["size"][row].tolist() == list(TALL if number % 2 else WIDE)
            assert batch["valid"][row].tolist() == [True, False, False]
            assert batch["boxes"][row].tolist() == [
                [number, 4, number + 20, 20], [0] * 4, [0] * 4
            ]  # fmt: skip
            masks = np.unpackbits(batch["masks"][row], axis=-1)
            expected = np.zeros(batch["image"].shape[1:3])
            expected[4:20, number : number + 20] = 1
            np.testing.assert_array_equal(masks[0], expected)
            assert not masks[1:].any()
            outside = batch["image"][row].copy()
            outside[: batch["size"][row, 0], : batch["size"][row, 1]] = 0
            assert not outside.any()


def test_what_is_not_trained_on(tmp_path):
    """Crowds and boxes without area are left out, and images that have nothing else."""
    objects = [_object(i, i) for i in (0, 2, 4, 6)]
    objects += [
        _object(20, 0, iscrowd=1),
        _object(21, 2, bbox=[3, 3, 0, 5]),
        _object(22, 8, iscrowd=1),
        _object(23, 10, area=0),
        _object(24, 4, category_id=2),
    ]
    split = open_folder(_write(tmp_path, objects), "train")
    records = train_records(split)
    assert len(records) == 4
    assert len(eval_records(split)) == COUNT
    (batch,) = _train(split, 1, augment=dataclasses.replace(HOW, crop=0.0))
    counts = dict(zip(_ids(batch), batch["valid"].sum(axis=1).tolist(), strict=True))
    assert counts == {0: 1, 2: 1, 4: 2, 6: 1}
    row = _ids(batch).index(4)
    assert batch["label"][row].tolist() == [0, 1, 0]


def test_images_without_objects_after_a_cut(tmp_path):
    """Cuts need not have objects; such a row is all background."""
    split = open_folder(_write(tmp_path, [_object(i, i) for i in range(COUNT)]), "train")
    how = dataclasses.replace(HOW, crop=1.0, crop_sides=(64,), crop_range=(16, 18))
    counts = {count for batch in _train(split, 12, augment=how) for count in batch["valid"].sum(1)}
    assert counts == {0, 1}


def test_more_objects_than_slots(tmp_path, capsys):
    objects = [_object(10 * i + j, i) for i in range(0, COUNT, 2) for j in range(5)]
    split = open_folder(_write(tmp_path, objects), "train")
    for batch in _train(split, 3, augment=dataclasses.replace(HOW, crop=0.0)):
        assert batch["valid"].all()
    told = "6 training images have more than 3 objects; the first 3 of each are taken"
    assert capsys.readouterr().err.count(told) == 1


def test_damaged_images_are_replaced_and_stay_within_the_batch(tmp_path, capsys):
    """By the next image, which may lie otherwise."""
    folder = _write(tmp_path, [_object(i, i) for i in range(COUNT)], damaged=(4,))
    split = open_folder(folder, "train")
    seen = [_ids(batch) for batch in _train(split, 6)]
    assert all(4 not in ids for ids in seen)
    assert any(len({number % 2 for number in ids}) == 2 for ids in seen)
    assert capsys.readouterr().err.count("cannot read") == 1


def test_nothing_to_train_on(tmp_path):
    split = open_folder(_write(tmp_path, [_object(1, 0, iscrowd=1)]), "train")
    with pytest.raises(UserError, match="none of its 12 images is one"):
        train_records(split)


@pytest.mark.parametrize("least", [False, True])
def test_evaluation_batches(split, least):
    config = _config(data=ObjectsConfig(least_padding=least))
    batches = eval_batches(eval_records(split), config, 2, Host())
    found = list(batches)
    assert len(found) == len(batches) == (6 if least else 4)
    shapes = {(64, 96), (96, 64)}
    assert {batch["image"].shape[1:3] for batch in found} == shapes
    numbers = sorted(n for batch in found for n in batch["id"][batch["mask"]].tolist())
    assert numbers == list(range(COUNT))
    for batch in found:
        for row in np.flatnonzero(batch["mask"]):
            number = int(batch["id"][row])
            assert _ids(batch)[row] == number
            size = (90, 60) if number % 2 else (60, 90)
            assert batch["size"][row].tolist() == list(size)
            np.testing.assert_array_equal(batch["scale"][row], np.float32([1.5, 1.5]))
        assert (batch["id"][~batch["mask"]] == -1).all()


def test_least_padding_is_less(split):
    how = dataclasses.replace(HOW, buckets=((128, 192),))
    for least, shapes in ((False, {(128, 192)}), (True, {(64, 96), (96, 64)})):
        config = _config(augment=how, data=ObjectsConfig(least_padding=least))
        found = eval_batches(eval_records(split), config, 2, Host())
        assert {batch["image"].shape[1:3] for batch in found} == shapes


def test_hosts_evaluate_parts_of_the_same_batches(split):
    whole, *parts = (
        list(eval_batches(eval_records(split), _config(), 2, host))
        for host in (Host(), Host(0, 2), Host(1, 2))
    )
    for batch, first, second in zip(whole, *parts, strict=True):
        _same(batch, {name: np.concatenate([first[name], second[name]]) for name in batch})


def test_damaged_images_do_not_count_in_evaluation(tmp_path, capsys):
    split = open_folder(_write(tmp_path, [_object(0, 0)], damaged=(3,)), "train")
    batches = eval_batches(eval_records(split), _config(), 2, Host())
    counted = sorted(n for batch in batches for n in batch["id"][batch["mask"]].tolist())
    assert counted == [number for number in range(COUNT) if number != 3]
    assert "cannot read" in capsys.readouterr().err


def test_a_photo_as_evaluation_sees_it():
    seen = view(np.full((*TALL, 3), 9, np.uint8), HOW)
    assert seen["image"].shape == (96, 64, 3)
    assert seen["size"].tolist() == [90, 60]
    assert (seen["image"][:90, :60] == 9).all()
    assert not seen["image"][90:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ()}, "pairs of multiples of 32"),
        ({"buckets": ((64, 100),)}, "pairs of multiples of 32"),
        ({"buckets": ((64, 64),)}, "such that one holds images of 64 x 90"),
        ({"sides": (200,)}, "such that one holds images of 200 x 90"),
    ],
)
def test_buckets_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=rf"augment\.buckets must be {message}"):
        _config(augment=dataclasses.replace(HOW, **changes))
