import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.emoji import group, read_entries, split_entries
from natjax.train.tasks.classification.datasets.registry import get_spec


def entry(name, code, category="Objects", subcategory="tool", **more):
    return {
        "name": name,
        "unified": code,
        "category": category,
        "subcategory": subcategory,
        "image": code.lower() + ".png",
        "has_img_google": True,
    } | more


ENTRIES = [
    *(entry(f"TOOL {chr(65 + i)}", f"1F5{i:02X}") for i in range(20)),
    entry("FIREFIGHTER", "1F9D1-200D-1F692", "People & Body", "person-role"),
    entry("MAN FIREFIGHTER", "1F468-200D-1F692", "People & Body", "person-role"),
    entry("MAN RUNNING", "1F3C3-200D-2642-FE0F", "People & Body", "person-activity"),
    entry("WOMAN RUNNING", "1F3C3-200D-2640-FE0F", "People & Body", "person-activity"),
    entry("RUNNER", "1F3C3", "People & Body", "person-activity"),
    entry("FAMILY: MAN, BOY", "1F468-200D-1F466", "People & Body", "family"),
    entry("KISS", "1F48F", "People & Body", "family"),
    entry("SKIN", "1F3FB", "Component", "skin-tone"),
    entry("NOT DRAWN", "1F999", has_img_google=False),
]


@pytest.fixture
def package(tmp_path):
    """A folder like the unpacked npm package's."""
    (tmp_path / "img/google/64").mkdir(parents=True)
    (tmp_path / "emoji.json").write_text(json.dumps(ENTRIES))
    for at, item in enumerate(ENTRIES):
        drawing = Image.new("RGBA", (64, 64), (at, 0, 0, 0))
        drawing.paste((at, 0, 0, 255), (0, 0, 32, 64))
        drawing.save(tmp_path / "img/google/64" / item["image"])
    return tmp_path


def test_variants_of_one_drawing_are_one_object(package):
    people = [item for item in read_entries(package) if item["category"] == "People & Body"]
    assert [[item["name"] for item in members] for members in group(people)] == [
        ["FIREFIGHTER", "MAN FIREFIGHTER"],
        ["MAN RUNNING", "WOMAN RUNNING", "RUNNER"],
        ["FAMILY: MAN, BOY", "KISS"],
    ]


def test_a_drawing_can_join_two_objects():
    parts = [entry("OLD NAME", "1F3C3"), entry("GOLF", "1F3CC"), entry("GOLF", "1F3C3-FE0F")]
    assert [len(members) for members in group(parts)] == [3]


def test_a_fifth_of_each_category_is_held_out_and_no_object_is_on_both_sides(package):
    splits = split_entries(read_entries(package))
    assert splits == split_entries(read_entries(package))
    names = {split: {item["name"] for item in items} for split, items in splits.items()}
    assert len(names["train"] | names["test"]) == 27
    assert not names["train"] & names["test"]
    assert sum(name.startswith("TOOL") for name in names["test"]) == 4
    assert not {"MAN RUNNING", "RUNNER"} & names["test"]  # an object of three is too large


def test_drawings_are_laid_on_white(package, tmp_path):
    spec = get_spec(ImagesConfig(name="emoji"))
    builder = open_dataset(spec, ImagesConfig(name="emoji", dir=package, prepared_dir=tmp_path))
    train, test = open_split(builder, "train"), open_split(builder, "test")
    assert (len(train), len(test)) == (23, 4)
    pixels = np.asarray(Image.open(io.BytesIO(train[0]["image"])))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:, 32:] == 255).all()
    assert (pixels[:, :32, 1:] == 0).all()


def test_what_is_missing_says_how_to_get_it(package, tmp_path):
    spec, data = (
        get_spec(ImagesConfig(name="emoji")),
        ImagesConfig(name="emoji", prepared_dir=tmp_path / "new"),
    )
    with pytest.raises(UserError, match=r"npm pack emoji-datasource-google@16\.0\.0"):
        open_dataset(spec, data)
    with pytest.raises(UserError, match=r"has no emoji\.json: run `npm pack"):
        open_dataset(spec, dataclasses.replace(data, dir=tmp_path / "nothing"))
    (package / "img/google/64/1f500.png").unlink()
    with pytest.raises(UserError, match=r"has no img/google/64/1f500.png"):
        open_dataset(spec, dataclasses.replace(data, dir=package))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the list of emoji-datasource-google"),
        ("[{}]", "is not the list"),
        (json.dumps([entry("X", "1F500", image="../../x.png")]), "must name images like"),
    ],
)
def test_a_list_that_is_none(package, text, message):
    (package / "emoji.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_entries(package)
