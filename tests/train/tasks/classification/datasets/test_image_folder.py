import dataclasses
import io
import re

import imagenet_tar
import pytest
from PIL import Image

from natjax.cli import main
from natjax.train.config.serialization import from_json, to_json
from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ClassificationConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.registry import get_spec, with_classes


@pytest.fixture
def folder(tmp_path):
    """Two classes of three and two training photos, and one of each to validate on."""
    for place, count in {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}.items():
        (tmp_path / place).mkdir(parents=True)
        for i in range(count):
            (tmp_path / place / f"{i}.jpg").write_bytes(imagenet_tar.photo(i))
    return tmp_path


def config(folder, **changes):
    return ImagesConfig(name="image_folder", dir=folder, image_size=16, **changes)


def read(folder, split, **changes):
    data = config(folder, **changes)
    source = open_split(open_dataset(get_spec(data), data), split)
    return [source[i] for i in range(len(source))]


def test_records_are_the_files_in_order(folder):
    records = read(folder, "train")
    assert [record["label"] for record in records] == [0, 0, 0, 1, 1]
    assert records[4]["image"] == (folder / "train/dog/1.jpg").read_bytes()
    assert [record["label"] for record in read(folder, "val")] == [0, 1]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_held_out_images(folder, name):
    (folder / "val").rename(folder / name)
    assert len(read(folder, "val")) == 2


def test_hidden_files_do_not_count_and_links_do(folder):
    (folder / "train/.git").mkdir()
    (folder / "train/cat/.DS_Store").write_text("")
    (folder / "train/README.txt").write_text("")
    (folder / "train/cat/x.jpg").symlink_to(folder / "train/dog/0.jpg")
    (folder / "real").mkdir()
    (folder / "train/dog").rename(folder / "real/dog")
    (folder / "train/dog").symlink_to(folder / "real/dog")
    records = read(folder, "train")
    assert [record["label"] for record in records] == [0, 0, 0, 0, 1, 1]
    assert records[3]["image"] == records[4]["image"]


def test_classes_are_kept_with_a_run(folder, tmp_path):
    data = with_classes(config(folder))
    assert data.classes == ("cat", "dog")
    run = ClassificationConfig(data=data)
    assert from_json(ClassificationConfig, to_json(run)) == run
    elsewhere = dataclasses.replace(data, dir=tmp_path / "gone")
    assert get_spec(elsewhere).class_names == ("cat", "dog")
    assert with_classes(ImagesConfig(name="digits")) == ImagesConfig(name="digits")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (lambda f: (f / "train/empty").mkdir(), "train", "train/empty must hold images, got none"),
        (lambda f: (f / "val/bird").mkdir(), "val", "2 classes of training: bird is new"),
        (
            lambda f: (f / "val/dog").rename(f / "val/wolf"),
            "val",
            "val must hold the 2 classes of training: dog is missing, wolf is new",
        ),
        (lambda f: (f / "train/dog/x").mkdir(), "train", "must hold files, got .*/train/dog/x/"),
        (
            lambda f: (f / "train/dog/x.jpg").symlink_to("nowhere"),
            "train",
            "x.jpg is a link that leads nowhere",
        ),
        (lambda f: (f / "val").rename(f / "held_out"), "val", "no val or validation or test"),
        (lambda f: (f / "train").rename(f / "x"), "train", "must hold train/CLASS/IMAGE"),
    ],
    ids=range(7),
)
def test_odd_folders(folder, change, split, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        read(folder, split)


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="a folder of images for each class, got none"):
        get_spec(config(tmp_path))
    with pytest.raises(UserError, match=r"needs --data\.dir DIR"):
        get_spec(config(None))


@pytest.mark.slow
def test_a_run_on_a_folder_and_its_predictions(folder, tmp_path, capsys):
    """Trained, one image being damaged, then used where the folder is gone."""
    (folder / "train/dog/0.jpg").write_bytes(b"no image")
    run = tmp_path / "run"
    words = f"train digits --data.name image_folder --data.dir {folder} --model.name nat_pico"
    words += f" --steps 2 --optimizer.warmup-steps 1 --batch-size 8 --log-every 1 --run {run}"
    words += " --checkpoint.every 2 --eval-every 2 --data.image-size 32"
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    assert captured.err.count("cannot read") == 1
    assert re.search(r"cannot read .*/train/dog/0.jpg", captured.err)
    photo = folder / "photo.png"
    Image.open(io.BytesIO(imagenet_tar.photo(5))).save(photo)
    (folder / "train").rename(folder / "gone")
    assert main(["predict", str(run), str(photo)]) == 0
    assert re.search("cat|dog", capsys.readouterr().out)
