import imagenet_tar
import pytest

from natjax.cli import main
from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import ImagesConfig
from natjax.train.tasks.classification.datasets.imagenet_prepare import prepare
from natjax.train.tasks.classification.datasets.registry import get_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Archives in ``tars``, and what is prepared from them in ``data``."""
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_tar.write_all(folder / "tars")
    prepare(folder / "tars", folder / "data", partial=True)
    return folder


def open_imagenet(**settings):
    data = ImagesConfig(name="imagenet2012", **settings)
    spec = get_spec(data)
    builder = open_dataset(spec, data)
    return [len(open_split(builder, split)) for split in (spec.train_split, spec.test_split)]


def test_opened_where_it_is(folder, tmp_path):
    assert open_imagenet(prepared_dir=folder / "data") == [34, 10]
    for inside in ("data", "data/imagenet2012", "data/imagenet2012/5.1.0"):
        assert open_imagenet(dir=folder / inside, prepared_dir=tmp_path) == [34, 10]
    assert not any(tmp_path.iterdir())


def test_not_prepared(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError) as error:
        open_imagenet(dir=folder / "tars", prepared_dir=tmp_path)
    command = f"natjax data prepare imagenet2012 --manual-dir {folder / 'tars'}"
    assert str(error.value).endswith(f"run: {command} --prepared-dir {tmp_path}")
    monkeypatch.setenv("NATJAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"--manual-dir DIR, where DIR holds ILSVRC2012_img_train"):
        open_imagenet()


def test_a_missing_split(folder, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / imagenet_tar.TRAIN).symlink_to(folder / "tars" / imagenet_tar.TRAIN)
    prepare(tars, tmp_path, partial=True)
    with pytest.raises(UserError, match="must have the split 'validation', got train"):
        open_imagenet(prepared_dir=tmp_path)


def test_classes_are_the_synsets():
    names = get_spec(ImagesConfig(name="imagenet2012")).class_names
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names[0] == "n01440764"


def test_bench(folder, capsys):
    words = f"data bench --data.name imagenet2012 --data.dir {folder / 'data'} --seconds 0.3"
    words += " --batch-size 4 --data.image-size 32 --threads 1 --images-per-second 2500"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert "imagenet2012, 32 px" in out
    assert "images/s a core" in out
    for stage in ("read", "decode", "change at random"):
        assert f"{stage} " in out
    assert "2,500 images/s need " in out
    assert main(["data", "bench"]) == 2
    assert main(["data", "bench", "digits", "--seconds", "0"]) == 2
    error = capsys.readouterr().err
    assert "takes a PRESET or --data.name" in error
    assert "--seconds must be positive, got 0.0" in error


def test_cores_that_feed_a_rate():
    from natjax.train.data.bench import Measurement

    data = ImagesConfig(name="digits")
    measured = Measurement(data=data, images=600, seconds=2.0, cpu_seconds=3.0, stages={})
    assert measured.rate == 300
    assert measured.rate_per_core == 200
    assert [measured.cores(rate) for rate in (200.0, 201.0, 2500.0)] == [1, 2, 13]
