"""The commands ``natjax predict`` without a run, and ``natjax attention``."""

import subprocess
import sys

import draw
import numpy as np
import pytest
from PIL import Image

import natjax
from natjax.cli import main

OF_TRAINING = ("grain", "tyro", "matplotlib", "sklearn", "psutil", "tensorflow_datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights and a photo."""
    path = tmp_path_factory.mktemp("predict")
    for name, classes in (("micro", 1000), ("ten", 10)):
        model = draw.filled(
            lambda rngs, n=classes: natjax.create_model("nat_micro", num_classes=n, rngs=rngs)
        )
        natjax.save_weights(model, path / f"{name}.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path / "photo.png")
    (path / "broken.png").write_bytes(b"no image")
    return path


def _command(folder, *photos, weights="micro", top=3):
    paths = [str(folder / photo) for photo in photos]
    options = ["--model", "nat_micro", "--weights", str(folder / f"{weights}.safetensors")]
    return ["predict", *paths, *options, "--top", str(top)]


def test_classes_of_a_photo(folder, capsys):
    assert main(_command(folder, "photo.png")) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert name == str(folder / "photo.png")
    model = natjax.create_model("nat_micro", weights=folder / "micro.safetensors")
    logits = np.asarray(model(natjax.preprocess(folder / "photo.png", model)))[0]
    best = np.argsort(-logits)[:3]
    labels = natjax.labels("imagenet1k")
    assert [line.split("%  ")[1] for line in lines] == [labels[i] for i in best]


def test_classes_without_names(folder, capsys):
    assert main(_command(folder, "photo.png", weights="ten", top=1)) == 0
    assert "%  class " in capsys.readouterr().out


def test_unreadable_photos_are_named(folder, capsys):
    assert main(_command(folder, "broken.png", "photo.png")) == 1
    out, err = capsys.readouterr()
    assert str(folder / "photo.png") in out
    assert f"natjax: cannot read image {folder / 'broken.png'}" in err


def test_no_library_of_training_is_needed(folder):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OF_TRAINING!r}))\n"
        f"from natjax.cli import main; sys.exit(main({_command(folder, 'photo.png')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "%  " in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("photo.png --model nat_mirco", "did you mean nat_micro"),
        ("photo.png --model nat_micro", "nat_micro has none; pass a file or URL"),
        ("photo.png --model nat_micro --step 3", "--step and --raw are for a run"),
        ("photo.png --model nat_micro --top 0", "--top must be at least 1, got 0"),
        ("photo.png", "predict takes a run and images, or images and --model"),
        (
            "runs/x photo.png --weights x.pth",
            "--weights is for --model; a run has its own; got x.pth",
        ),
    ],
)
def test_wrong_use(words, message, capsys):
    assert main(["predict", *words.split()]) == 2
    assert message in capsys.readouterr().err


def _attention(folder, *options, photo="photo.png"):
    weights = str(folder / "ten.safetensors")
    return [
        "attention",
        str(folder / photo),
        "--model",
        "nat_micro",
        "--weights",
        weights,
        *options,
    ]


def test_a_picture_of_attention(folder, tmp_path, capsys):
    out = tmp_path / "look.png"
    assert main(_attention(folder, "--at", "3,30", "--size", "48", "--out", str(out))) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "40,3", "--size", "32"), "at must be a pixel of 32 x 32; got (40, 3)"),
        (("--at", "middle"), "must be ROW,COLUMN such as 100,80; got middle"),
        (("--size", "0"), "size must be an integer >= 1; got 0"),
        (("--label", "10"), "label must be a class of 10, from 0; got 10"),
    ],
)
def test_wrong_use_of_attention_is_one_line(folder, tmp_path, capsys, options, message):
    assert main(_attention(folder, *options, "--out", str(tmp_path / "x.png"))) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x.png").exists()


def test_attention_names_a_file_that_is_no_image(folder, capsys):
    assert main(_attention(folder, photo="broken.png")) == 2
    assert "broken.png" in capsys.readouterr().err
