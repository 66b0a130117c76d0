"""Weights on labelled folders of photos, made of the two that scikit-learn carries."""

import dataclasses
import io
import re

import draw
import imagenet_tar
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import natjax
from natjax.backbones import variants
from natjax.cli import main
from natjax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, preprocessing
from natjax.train.cli.evaluate import How, evaluate_weights
from natjax.train.data.images import center_view, decode
from natjax.train.errors import UserError
from natjax.train.tasks.classification.datasets.held_out import open_held_out
from natjax.train.tasks.classification.evaluate_weights import open_weights_task

NAME = "nat_photo"
SYNSETS = ("n01440764", "n02099601", "n03445777")


@pytest.fixture(scope="module", autouse=True)
def _photo_model():
    """A small model with three classes, for RGB images of 32 x 32."""
    known = variants.VARIANTS
    config = dataclasses.replace(known["nat_micro"], depths=(1, 1), dilations=(), num_classes=3)
    known[NAME] = config
    yield
    del known[NAME]


@pytest.fixture(scope="module")
def photos():
    """Crops of real photos, of several sizes."""
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    crops = []
    for i in range(13):
        image = images[i % 2]
        width, height = (int(x) for x in rng.integers(40, 300, 2))
        left, top = (
            int(rng.integers(0, n - m)) for n, m in zip(image.size, (width, height), strict=True)
        )
        crops.append(image.crop((left, top, left + width, top + height)))
    return crops


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    """An ImageNet-like folder: JPEGs, also gray, CMYK, and one that is a PNG; hidden files."""
    folder = tmp_path_factory.mktemp("val")
    for i, photo in enumerate(photos):
        place = folder / SYNSETS[i % 3]
        place.mkdir(exist_ok=True)
        kind = {3: "L", 4: "CMYK"}.get(i, "RGB")
        encoding = "PNG" if i == 5 else "JPEG"
        photo.convert(kind).save(place / f"ILSVRC2012_val_{i:08}.JPEG", encoding)
    (folder / ".DS_Store").touch()
    (folder / SYNSETS[0] / ".hidden").touch()
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "photo.safetensors"
    model = draw.filled(lambda rngs: natjax.create_model(NAME, rngs=rngs))
    natjax.save_weights(model, path)
    return path


def one_by_one(weights, folder, model=NAME):
    """Labels and ranks of the labels, computed one photo at a time without the pipeline."""
    network = natjax.create_model(model, weights=weights)
    ranks = []
    for label, synset in enumerate(sorted(SYNSETS)):
        for path in sorted((folder / synset).glob("ILSVRC*")):
            image = Image.open(path).convert("RGB")
            pixels = np.asarray(_by_hand(image, 32), np.float32) / 255
            pixels = (pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
            logits = np.asarray(network(jnp.asarray(pixels)[None]))[0]
            ranks.append(int((logits > logits[label]).sum()))
    return np.array(ranks)


def _by_hand(image, size):
    short = int(size / 0.875)
    width, height = image.size
    if width < height:
        image = image.resize((short, int(short * height / width)), Image.BICUBIC)
    else:
        image = image.resize((int(short * width / height), short), Image.BICUBIC)
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def evaluated(weights, folder, **how):
    data = {"dir": folder} | how.pop("data", {})
    return evaluate_weights(str(weights), How(data=data, **how))


def scores_of(weights, folder, **how):
    return evaluated(weights, folder, **how).results["raw"].values


@pytest.mark.parametrize("batch_size", [4, 13, pytest.param(64, marks=pytest.mark.slow)])
def test_accuracy_is_exact_over_all_photos(batch_size, weights, folder):
    """For batches that 13 photos do not fill, that they fill, and larger ones."""
    ranks = one_by_one(weights, folder)
    assert len(ranks) == 13
    done = evaluated(weights, folder, batch_size=batch_size)
    scores = done.results["raw"].values
    assert done.title == NAME
    assert scores["images"] == 13
    assert scores["top1"] == pytest.approx((ranks < 1).mean())
    assert scores["top5"] == 1
    assert 0 < (ranks < 1).sum() < 13
    assert done.task.unread(done.results["raw"]) == 0


def test_several_devices_give_the_same(weights, folder):
    one = scores_of(weights, folder, batch_size=8)
    two = scores_of(weights, folder, batch_size=8, devices=2)
    workers = scores_of(weights, folder, batch_size=8, data={"workers": 1})
    assert workers == one
    assert two == one | {"loss": pytest.approx(one["loss"], rel=1e-5)}


def test_the_command(weights, folder, capsys):
    words = ["eval", "--weights", str(weights), "--model", NAME, "--data.dir", str(folder)]
    assert main([*words, "--batch-size", "8"]) == 0
    out = capsys.readouterr().out
    assert f"{NAME}, 13 held-out images" in out
    assert "bicubic to 36, crop 32" in out
    top1 = (one_by_one(weights, folder) < 1).mean()
    assert f"{top1:.2%}" in out


def test_no_photo_can_be_read(weights, tmp_path, capsys):
    for synset in SYNSETS:
        (tmp_path / synset).mkdir()
        (tmp_path / synset / "x.JPEG").write_text("no photo")
    assert main(["eval", "--weights", str(weights), "--data.dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("natjax: cannot read") == 3
    assert "natjax: none of the images could be read" in error


def test_damaged_photos_are_named_and_not_counted(weights, folder, tmp_path, capsys):
    for synset in SYNSETS:
        (tmp_path / synset).mkdir()
        for path in (folder / synset).glob("ILSVRC*"):
            (tmp_path / synset / path.name).write_bytes(path.read_bytes())
    first = sorted((tmp_path / SYNSETS[1]).iterdir())[0]
    first.write_bytes(first.read_bytes()[:300])
    (tmp_path / SYNSETS[2] / "ILSVRC2012_val_text.JPEG").write_text("no photo")
    words = ["eval", "--weights", str(weights), "--data.dir", str(tmp_path)]
    assert main([*words, "--batch-size", "8"]) == 1
    shown = capsys.readouterr()
    assert "12 held-out images" in shown.out
    assert f"cannot read {first}: " in shown.err
    assert "ILSVRC2012_val_text.JPEG" in shown.err
    assert "natjax: 2 images could not be read and do not count" in shown.err
    assert shown.err.count("natjax: ") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval", "either RUN or --weights"),
        ("eval run --weights x.pth", "either RUN or --weights"),
        ("eval --weights {weights}", "needs --data.dir"),
        ("eval --weights {weights} --data.dir nowhere", "must be a folder, got nowhere"),
        ("eval --weights {weights} --data.dir empty", "folder of images for each class"),
        ("eval --weights nowhere.pth --data.dir {folder}", "there is no file nowhere.pth"),
        (
            "eval --weights {weights} --data.dir {folder} --devices 3 --batch-size 64",
            "--batch-size must be a positive multiple of the 3 devices, got 64",
        ),
        ("eval --weights {weights} --data.dir {folder} --batch-size 0", "--batch-size must be"),
        ("eval --weights {weights} --data.dir {folder} --devices 0", "--devices must be positive"),
        ("eval --weights {weights} --data.dir {folder} --devices 9", "at most the 8 there are"),
        ("eval --weights {weights} --data.dir nested", "must hold files, got nested/a/deeper"),
        ("eval --weights {weights} --data.dir outer", r"2 classes, the weights know 3.*outer/val"),
    ],
)
def test_wrong_use(words, message, weights, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested" / "a" / "deeper").mkdir(parents=True)
    for name in ("train", "val"):
        (tmp_path / "outer" / name).mkdir(parents=True)
        (tmp_path / "outer" / name / "x.JPEG").touch()
    assert main(words.format(weights=weights, folder=folder).split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def prepare(folder, name, split, examples):
    """Write a TFDS data set of encoded images and labels, as TFDS stores ImageNet."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")
        RELEASE_NOTES = {"5.1.0": "A test."}  # noqa: RUF012

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=list(SYNSETS)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            for i, (data, label) in enumerate(examples):
                yield i, {"image": io.BytesIO(data), "label": label}

    Builder.name = name
    tfds.disable_progress_bar()
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


def test_prepared_tfds_data(weights, folder, tmp_path):
    files = [path for synset in SYNSETS for path in sorted((folder / synset).glob("ILSVRC*"))]
    examples = [(path.read_bytes(), SYNSETS.index(path.parent.name)) for path in files]
    prepare(tmp_path, "imagenet2012", "validation", examples)
    found = open_held_out(tmp_path)
    assert (len(found.images), found.classes) == (13, 3)
    expected = scores_of(weights, folder, batch_size=4)
    for place in (tmp_path, tmp_path / "imagenet2012", tmp_path / "imagenet2012" / "5.1.0"):
        found = scores_of(weights, place, batch_size=4)
        assert found == expected | {"loss": pytest.approx(expected["loss"])}


def test_the_official_archive(photos, tmp_path):
    """From the tar that ImageNet's validation photos come in, by TFDS' own builder."""
    encoded = []
    for i, photo in enumerate(photos):
        file = io.BytesIO()
        photo.convert({3: "L", 4: "CMYK"}.get(i, "RGB")).save(file, "PNG" if i == 5 else "JPEG")
        encoded.append(file.getvalue())
    imagenet_tar.write_archive(tmp_path / "archives", encoded)
    imagenet_tar.prepare(tmp_path / "data", tmp_path / "archives")

    known = variants.VARIANTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known, NAME, dataclasses.replace(known[NAME], num_classes=1000))
        model = draw.filled(lambda rngs: natjax.create_model(NAME, rngs=rngs))
        natjax.save_weights(model, tmp_path / "x.safetensors")
        found = scores_of(tmp_path / "x.safetensors", tmp_path / "data", batch_size=4)

    pixels = [np.asarray(_by_hand(Image.open(io.BytesIO(x)).convert("RGB"), 32)) for x in encoded]
    scaled = (np.stack(pixels) / np.float32(255) - IMAGENET_MEAN) / np.float32(IMAGENET_STD)
    log_shares = jax.nn.log_softmax(model(jnp.asarray(scaled, jnp.float32)))
    labels = imagenet_tar.official_labels(len(encoded))
    expected = -np.mean([log_shares[i, label] for i, label in enumerate(labels)])
    assert found["images"] == 13
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_missing_split(tmp_path, folder):
    image = next((folder / SYNSETS[0]).glob("ILSVRC*")).read_bytes()
    prepare(tmp_path, "imagenet2012", "train", [(image, 1)])
    with pytest.raises(UserError, match="must have the split 'validation', got train"):
        open_held_out(tmp_path)


def test_published_preprocessing():
    assert preprocessing("nat_tiny") == Preprocessing(size=224, crop_pct=0.875)
    for name, config in variants.VARIANTS.items():
        how = preprocessing(name)
        assert how.size == config.input_size
        assert (how.crop_pct == 1) == (config.input_size == 384)
    assert preprocessing("nat_tiny").mean == (0.485, 0.456, 0.406)
    assert preprocessing("nat_tiny").std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("size", "resized", "box"),
    [
        ((500, 375), (341, 256), (58, 16, 282, 240)),  # 341.33 down; 58.5 to the even side
        ((375, 500), (256, 341), (16, 58, 240, 282)),
        ((256, 257), (256, 257), (16, 16, 240, 240)),  # 16.5 to the even side
        ((256, 259), (256, 259), (16, 18, 240, 242)),  # 17.5 to the even side
        ((224, 224), (256, 256), (16, 16, 240, 240)),
        ((1, 3), (256, 768), (16, 272, 240, 496)),
    ],
)
def test_resize_and_central_crop(size, resized, box):
    """Short side to 256, long side rounded down; margins rounded as Python rounds."""
    how = preprocessing("nat_tiny")
    assert how.resized(*size) == resized
    assert how.crop_box(*resized) == box


def test_preparing_is_pillow_s_bicubic(photos):
    how = Preprocessing(size=32, crop_pct=0.875)
    for photo in photos:
        found = center_view(photo, how.size, how.crop_pct)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(_by_hand(photo, 32)))


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"no image", b""])
def test_postscript_is_no_photo(data):
    with pytest.raises(OSError, match="cannot identify image: it is none of JPEG, PNG"):
        decode(data, 3)


def test_weights_of_no_published_model(folder, tmp_path):
    config = natjax.NATConfig(dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_classes=3)
    model = draw.filled(lambda rngs: natjax.NAT(config, rngs=rngs))
    natjax.save_weights(model, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="its preprocessing is not known"):
        evaluated(tmp_path / "x.safetensors", folder)


def test_published_accuracy_is_shown_beside(weights, folder):
    opened = open_weights_task(str(weights), folder)
    assert len(opened.notes()) == 1
    notes = dataclasses.replace(opened, model="nat_tiny").notes()
    assert any("nat_tiny.pth: 83.2 top-1" in note for note in notes)
