import dataclasses
import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natjax.train.data.datasets import open_dataset, open_split, prepared_dir
from natjax.train.errors import UserError
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.registry import get_spec

REAL = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path):
    """A folder like Fashion-MNIST's with 30 training and 11 test images, and its configuration."""
    rng = np.random.default_rng(0)
    original = tmp_path / "original"
    original.mkdir()
    for prefix, count in (("train", 30), ("t10k", 11)):
        write_idx(
            original / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28))
        )
        write_idx(original / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return ImagesConfig(name="fashion_mnist", dir=original, prepared_dir=tmp_path / "prepared")


def pixels(record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["image"])))


def test_digits_hold_every_image_once(digits):
    from sklearn.datasets import load_digits

    _, train, test = digits
    assert (len(train), len(test)) == (1437, 360)
    images, labels = load_digits(return_X_y=True)
    expected = sorted(
        (np.rint(x * (255 / 16)).astype(np.uint8).tobytes(), y)
        for x, y in zip(images, labels, strict=True)
    )
    found = sorted(
        (pixels(r).tobytes(), r["label"])
        for split in (train, test)
        for r in (split[i] for i in range(len(split)))
    )
    assert found == expected


def test_every_class_is_in_both_splits(digits):
    _, train, test = digits
    for split in (train, test):
        assert {split[i]["label"] for i in range(len(split))} == set(range(10))


def test_fashion_mnist_from_its_files(fashion):
    builder = open_dataset(get_spec(ImagesConfig(name="fashion_mnist")), fashion)
    train, test = open_split(builder, "train"), open_split(builder, "test")
    assert (len(train), len(test)) == (30, 11)
    assert pixels(train[3]).shape == (28, 28)


def test_a_prepared_set_needs_no_original_and_is_not_prepared_again(fashion):
    spec = get_spec(ImagesConfig(name="fashion_mnist"))
    builder = open_dataset(spec, fashion)
    written = {p: p.stat().st_mtime_ns for p in Path(builder.data_dir).iterdir()}
    again = open_dataset(spec, dataclasses.replace(fashion, dir=None))
    assert {p: p.stat().st_mtime_ns for p in Path(again.data_dir).iterdir()} == written


def test_an_interrupted_preparation_is_begun_anew(fashion, monkeypatch):
    from natjax.train.tasks.classification.datasets import fashion_mnist

    def interrupted(_):
        raise KeyboardInterrupt

    spec = get_spec(ImagesConfig(name="fashion_mnist"))
    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist, "encode_png", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_dataset(spec, fashion)
    leftover = prepared_dir(fashion) / "fashion_mnist" / "incomplete.ABC_1.0.0"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "half").write_text("")
    builder = open_dataset(spec, fashion)
    assert len(open_split(builder, "train")) == 30
    assert not leftover.exists()


def test_missing_originals_say_how_to_get_them(fashion, tmp_path):
    spec = get_spec(ImagesConfig(name="fashion_mnist"))
    with pytest.raises(UserError, match=r"dataset-fashion-mnist and pass --data.dir"):
        open_dataset(spec, dataclasses.replace(fashion, dir=None))
    with pytest.raises(UserError, match=r"has no train-images-idx3-ubyte.gz: install Debian"):
        open_dataset(spec, dataclasses.replace(fashion, dir=tmp_path))


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte.gz", np.zeros(29), "a label for each image, got 29 for 30"),
        ("train-labels-idx1-ubyte.gz", np.full(30, 11), "labels from 0 to 9, got 11"),
        ("t10k-images-idx3-ubyte.gz", np.zeros((11, 27, 28)), r"28x28 images, got \(27, 28\)"),
    ],
)
def test_files_that_do_not_fit(fashion, file, array, message):
    write_idx(fashion.dir / file, array)
    with pytest.raises(UserError, match=f"{file} must .*{message}"):
        open_dataset(get_spec(ImagesConfig(name="fashion_mnist")), fashion)


@pytest.mark.skipif(not REAL.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_files():
    from natjax.train.tasks.classification.datasets.fashion_mnist import read_split

    images, labels = read_split(REAL, "train")
    assert images.shape == (60000, 28, 28)
    assert np.bincount(labels).tolist() == [6000] * 10
    spec = get_spec(ImagesConfig(name="fashion_mnist"))
    assert images.mean() / 255 == pytest.approx(spec.mean[0], abs=1e-3)
    assert images.std() / 255 == pytest.approx(spec.std[0], abs=1e-3)


def test_normalisation_of_digits_is_that_of_its_pixels(digits):
    spec, train, _ = digits
    images = np.stack([pixels(train[i]) for i in range(len(train))]) / 255
    assert images.mean() == pytest.approx(spec.mean[0], abs=2e-3)
    assert images.std() == pytest.approx(spec.std[0], abs=2e-3)


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fashion_mnist'"):
        get_spec(ImagesConfig(name="fashionmnist"))


def test_where_prepared_sets_are_kept(monkeypatch, tmp_path):
    data = presets.digits().data
    assert prepared_dir(dataclasses.replace(data, prepared_dir=tmp_path)) == tmp_path
    monkeypatch.setenv("NATJAX_DATA", str(tmp_path / "a"))
    assert prepared_dir(data) == tmp_path / "a"
    monkeypatch.delenv("NATJAX_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared_dir(data) == tmp_path / "natjax" / "data"
