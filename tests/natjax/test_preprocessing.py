"""From a photo to the input of a model, and names of classes."""

import importlib.resources
import io
import pathlib

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import natjax
from natjax.class_names import __file__ as class_names_file
from natjax.images import open_image, without_far_ends
from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, preprocessing


def _photo(height=60, width=90, seed=0):
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    return smooth.resize((width, height), Image.Resampling.BICUBIC)


def test_preprocess_is_the_published_preparation():
    photo = _photo()
    side = preprocessing("nat_micro").short_side
    resized = photo.resize((side * 90 // 60, side), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 32) / 2), round((side - 32) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 32, top + 32)), np.float64)
    expected = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    found = natjax.preprocess(photo, "nat_micro")
    assert (found.shape, found.dtype) == ((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_preprocess_takes_paths_images_and_pixels(tmp_path):
    photo = _photo()
    photo.save(tmp_path / "photo.png")
    model = nnx.eval_shape(lambda: natjax.create_model("nat_micro", rngs=nnx.Rngs(0)))
    kinds = [tmp_path / "photo.png", str(tmp_path / "photo.png"), photo, np.asarray(photo)]
    first, *others = [natjax.preprocess(kind, model) for kind in kinds]
    for other in others:
        np.testing.assert_array_equal(first, other)
    gray = np.asarray(photo)[..., 0]
    shapes = [natjax.preprocess(x, model).shape for x in (gray, gray[..., None])]
    assert shapes == [(1, 32, 32, 3)] * 2


def test_files_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the image turned to the right
    _photo().save(tmp_path / "turned.png", exif=exif)
    found = open_image(tmp_path / "turned.png")
    expected = _photo().transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_strip_costs_little():
    strip = without_far_ends(Image.new("RGB", (100_000, 1)))
    assert strip.size == (32, 1)
    assert natjax.preprocess(Image.new("RGB", (1, 100_000)), "nat_micro").shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read image .*: cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot read image .*: cannot identify"),
        (None, "cannot read image .*: No such file"),
    ],
)
def test_what_is_no_image(tmp_path, content, message):
    path = tmp_path / "photo"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        natjax.preprocess(path, "nat_micro")


def test_cut_off_files(tmp_path):
    data = io.BytesIO()
    _photo().save(data, "PNG")
    (tmp_path / "cut.png").write_bytes(data.getvalue()[:400])
    with pytest.raises(ValueError, match=r"cannot read image .*cut\.png"):
        natjax.preprocess(tmp_path / "cut.png", "nat_micro")


@pytest.mark.usefixtures("unchecked")
def test_errors_of_arguments():
    with pytest.raises(ValueError, match=r"image must be uint8 .*; got float32 of shape"):
        natjax.preprocess(np.zeros((4, 4, 3), np.float32), "nat_micro")
    with pytest.raises(ValueError, match=r"image must be uint8 .*; got uint8 of shape \(4, 4, 2\)"):
        natjax.preprocess(np.zeros((4, 4, 2), np.uint8), "nat_micro")
    with pytest.raises(ValueError, match="did you mean nat_micro"):
        natjax.preprocess(_photo(), "nat_mirco")
    with pytest.raises(ValueError, match=r"model must take RGB images; got in_channels=1"):
        natjax.preprocess(
            _photo(),
            nnx.eval_shape(
                lambda: natjax.create_model("nat_micro", in_channels=1, rngs=nnx.Rngs(0))
            ),
        )


def test_names_of_cocos_classes():
    """The 80 of its detection task, in the order of the numbers of its categories, 1 to 90."""
    names = natjax.labels("coco")
    assert len(set(names)) == len(names) == 80
    assert (names[0], names[11], names[-1]) == ("person", "stop sign", "toothbrush")
    text = importlib.resources.files("natjax.class_names").joinpath("coco.txt").read_text("utf-8")
    numbers = [int(line.partition(" ")[0]) for line in text.splitlines()]
    assert numbers == sorted(set(numbers))
    assert set(range(1, 91)) - set(numbers) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def test_names_of_classes():
    names = natjax.labels("imagenet1k")
    assert (len(names), len(set(names))) == (1000, 1000)
    assert (names[0], names[207]) == ("tench, Tinca tinca", "golden retriever")
    assert (names[134], names[517]) == ("crane (wading bird)", "crane (lifting device)")
    folder = pathlib.Path(class_names_file).parent
    assert "WordNet 3.0 Copyright 2006 by Princeton" in (folder / "WORDNET-LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.glob("*1k.txt")) < 100_000
    with pytest.raises(ValueError, match="name must be one of 'imagenet1k', 'coco'; got"):
        natjax.labels("imagenet")
