"""Annotations in COCO's format: what is read, what is passed over, and what is no such file."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natjax.train.errors import UserError
from natjax.train.tasks.detection.datasets import coco_json
from natjax.train.tasks.detection.datasets.coco_json import read_annotations

MASK = {"size": [20, 30], "counts": [100, 50, 450]}


def _image(number, **changes):
    return {"id": number, "file_name": f"{number}.jpg", "height": 20, "width": 30} | changes


def _object(number, image, **changes):
    entry = {
        "id": number,
        "image_id": image,
        "category_id": 7,
        "bbox": [5, 0, 10, 12.5],
        "area": 50.5,
        "iscrowd": 0,
        "segmentation": MASK,
    }
    return entry | changes


CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]


def _read(images, annotations, categories=CATEGORIES, **more):
    content = {"annotations": annotations, "images": images, "categories": categories} | more
    return read_annotations(json.dumps(content), "FILE")


def _broken(found):
    return found.broken.tobytes().decode().splitlines()


def test_objects_lie_with_their_images_in_the_order_of_the_file():
    found = _read(
        [_image(40), _image(30), _image(50)],
        [_object(3, 50), _object(1, 40, category_id=9, iscrowd=1), _object(2, 50)],
    )
    assert len(found) == 3
    assert found.image_ids.tolist() == [40, 30, 50]
    assert found.classes == ("cat", "dog")  # by id
    assert found.category_ids.tolist() == [7, 9]
    assert found.ids.tolist() == [1, 3, 2]
    assert [found.file(i) for i in range(3)] == ["40.jpg", "30.jpg", "50.jpg"]
    crowd, nothing, two = (found.objects(i) for i in range(3))
    assert (len(crowd), len(nothing), len(two)) == (1, 0, 2)
    assert crowd.crowd.tolist() == [True]
    assert crowd.labels.tolist() == [1]
    assert two.boxes.tolist() == [[5, 0, 15, 12.5]] * 2
    assert two.masks.sum(axis=(1, 2)).tolist() == [50, 50]
    assert nothing.masks.shape == (0, 20, 30)
    assert found.broken.size == 0


def test_what_training_takes():
    """As mmdetection: no crowds, nothing ignored, outside, without area or thinner than a pixel."""
    left_out = (
        {"iscrowd": 1},
        {"ignore": 1},
        {"bbox": [30, 0, 5, 5]},
        {"bbox": [-5, 3, 5, 5]},
        {"area": 0},
        {"bbox": [0, 0, 0.5, 9]},
        {"bbox": [0, 0, 0, 0]},
    )
    taken = ({}, {"bbox": [0, 0, 1, 1]}, {"bbox": [25, -5, 10, 10]})
    objects = [_object(i, 1, **change) for i, change in enumerate((*left_out, *taken))]
    found = _read([_image(1)], objects)
    assert found.trained.tolist() == [False] * 7 + [True] * 3
    assert found.broken.size == 0


def test_area_of_the_mask_where_none_is_given():
    entry = _object(1, 1)
    del entry["area"], entry["iscrowd"]
    assert _read([_image(1)], [entry]).areas.tolist() == [50]


BROKEN_OBJECTS = [
    (5, "in place 1, of no id,: must be an object, got 5"),
    ({}, "in place 1, of no id,: id must be a whole number, got None"),
    (_object("1", 1), "in place 1, of no id,: id must be a whole number, got '1'"),
    (_object(2**63, 1), "id must be a whole number"),
    (_object(4, 2), "annotation 4: there is no usable image 2"),
    (_object(4, None), "annotation 4: image_id must be a whole number, got None"),
    (_object(4, 1, category_id=1), "annotation 4: there is no category 1"),
    (_object(4, 1, bbox=[1, 2, 3]), r"bbox must be four numbers, got \[1, 2, 3\]"),
    (_object(4, 1, bbox=[1, 2, 3, float("nan")]), "bbox must be four numbers of at most"),
    (_object(4, 1, bbox=[1, 2, 3, 1e300]), "bbox must be four numbers of at most"),
    (_object(4, 1, bbox=[1, 2, 3, 10**400]), "bbox must be four numbers of at most"),
    (_object(4, 1, bbox=[1, 2, -3, 4]), "no negative width or height"),
    (_object(4, 1, area="large"), "area must be a number from 0 on, got 'large'"),
    (_object(4, 1, area=float("inf")), "area must be a number from 0 on"),
    (_object(4, 1, iscrowd=2), "iscrowd must be 0 or 1, got 2"),
    (_object(4, 1, segmentation=[[1, 2, 3]]), "annotation 4: polygons must have x and y"),
    (_object(8, 1), "annotation 8: another annotation has this id"),
]


@pytest.mark.parametrize(("entry", "message"), BROKEN_OBJECTS)
def test_broken_annotations_are_passed_over_and_named(entry, message):
    found = _read([_image(1)], [_object(8, 1), entry, _object(9, 1)])
    assert found.ids.tolist() == [8, 9]
    assert re.search(message, _broken(found)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height must be a whole number from 1 to 65535, got 0"),
        ({"width": 20.0}, "width must be a whole number"),
        ({"height": 60_000, "width": 60_000}, "at most 178956970 pixels, got 60000 x 60000"),
        ({"file_name": 3}, "file_name must be the name of a file, got 3"),
        ({"file_name": "\ud800"}, "file_name must be the name"),
        ({"id": 2}, "another image has this id"),
    ],
)
def test_broken_images_and_what_is_in_them(change, message):
    found = _read([_image(2), _image(3, **change)], [_object(1, 3), _object(2, 2)])
    image, annotation = _broken(found)
    assert message in image
    assert annotation == "annotation 1: there is no usable image 3"
    assert found.image_ids.tolist() == [2]


def test_much_that_is_broken_is_an_error():
    few = [_object(i, 5) for i in range(16)]
    assert len(_broken(_read([_image(1)], few))) == 16
    with pytest.raises(UserError, match=r"17 of 18 images and annotations of FILE are broken: ann"):
        _read([_image(1)], [*few, _object(16, 5)])
    with pytest.raises(UserError, match="more than 10000 entries are broken"):
        _read([_image(1)], [0] * 10_001)


def test_small_text_of_large_masks_is_refused(monkeypatch):
    """A polygon of a few characters can be a mask of a megabyte."""
    monkeypatch.setattr(coco_json, "_LEAST_BUDGET", 0)
    wide, triangle = _image(1, height=999, width=60_000), [[0, 0, 59_999, 998, 0, 998]]
    with pytest.raises(
        UserError, match=r"all masks must take at most .*; annotation 0 goes beyond it"
    ):
        _read([wide], [_object(i, 1, segmentation=triangle) for i in range(3)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"FILE is no JSON object: character 0 must be \{, got its end"),
        ("[]", r"character 0 must be \{, got '\['"),
        ("{", "FILE is no JSON"),
        ('{"images": [1,', "FILE is no JSON: Expecting value at character 14"),
        ('{"images": [1 2]}', "character 14 must be ,, got '2'"),
        ('{"images" []}', "must be :, got"),
        ('{"images": [' + "[" * 100_000, "a value cannot be read at character 12"),
        ('{"images": [' + "1" * 5000 + "]}", "a value cannot be read at character 12"),
        (
            '{"images": 5, "categories": [], "annotations": []}',
            "must have a list 'images', got none",
        ),
        ('{"images": []}', "must have a list 'categories'"),
        ('{"images": [], "categories": [], "annotations": []}', "must have categories, got none"),
    ],
)
def test_texts_that_are_none(text, message):
    with pytest.raises(UserError, match=message):
        read_annotations(text, "FILE")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([1], "FILE has a category 1, of no id"),
        ([{"name": "cat"}], "of no id"),
        ([{"id": 1}], "category 1 of FILE must have a name, got None"),
        ([{"id": 1, "name": "a\nb"}], "must have a name, got 'a"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "got two of id 1"),
    ],
)
def test_categories_must_be_right(categories, message):
    with pytest.raises(UserError, match=message):
        _read([_image(1)], [], categories)


def test_no_image_that_can_be_used():
    with pytest.raises(UserError, match="must have images, got none; image 1: height must be"):
        _read([_image(1, height=0)], [])


def test_space_and_what_else_a_file_has():
    text = json.dumps(
        {"info": {"images": [1]}, "images": [_image(1)], "licenses": [], "annotations": []}
        | {"categories": CATEGORIES},
        indent=2,
    )
    assert len(read_annotations(f"\n {text} ", "FILE")) == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = [("images", name) for name in _image(1)] + [
    ("annotations", name) for name in _object(1, 1)
]


@settings(max_examples=50)
@given(st.sampled_from(FIELDS), values)
def test_any_value_anywhere_is_read_or_named(field, value):
    """And what is read can be used."""
    section, name = field
    content = {
        "images": [_image(1), _image(2)],
        "annotations": [_object(1, 1), _object(2, 2)],
        "categories": CATEGORIES,
    }
    content[section][0][name] = value
    found = read_annotations(json.dumps(content), "FILE")
    lost = 2 - len(found.ids)
    assert len(_broken(found)) == lost + 2 - len(found)
    for index in range(len(found)):
        objects = found.objects(index)
        assert objects.masks.shape == (len(objects), *found.sizes[index])
        assert np.isfinite(objects.boxes).all()
