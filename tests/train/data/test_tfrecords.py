import pickle
import shutil
import struct

import imagenet_tar
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from natjax.train.cluster.processes import Host
from natjax.train.data import tfrecords
from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.data.pipeline import read
from natjax.train.errors import UserError
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.held_out import open_held_out
from natjax.train.tasks.classification.datasets.imagenet_prepare import prepare
from natjax.train.tasks.classification.datasets.registry import get_spec
from natjax.train.tasks.classification.examples import train_images


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


def as_tfrecords(prepared, folder):
    """Copy a data set prepared as ArrayRecord into TFRecord files, as TFDS would name them."""
    target = folder / "imagenet2012" / "5.1.0"
    target.mkdir(parents=True)
    for path in prepared.iterdir():
        if "array_record" in path.name:
            source = array_record_data_source.ArrayRecordDataSource([str(path)])
            data = b"".join(framed(source[i]) for i in range(len(source)))
            (target / path.name.replace("array_record", "tfrecord")).write_bytes(data)
        else:
            text = path.read_text().replace('"array_record"', '"tfrecord"')
            (target / path.name).write_text(text)
    return target


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The same data set as ArrayRecord and as TFRecord, in several files."""
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_tar.write_all(folder / "tars")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tensorflow_datasets.core.utils.shard_utils.ShardConfig.min_shard_size", 1 << 14
        )
        made = prepare(folder / "tars", folder / "array", partial=True)
    return made, as_tfrecords(made, folder / "tf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NATJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfrecords"


def source(version, split="train"):
    return open_split(tfds.builder_from_directory(version), split)


@pytest.mark.parametrize("split", ["train", "validation", "train[5:-3]", "train[50%:]"])
def test_records_are_those_of_array_record(prepared, split):
    expected, found = (source(version, split) for version in prepared)
    assert isinstance(found, tfrecords.TFRecords)
    assert len(found) == len(expected) > 3
    for i in range(len(expected)):
        assert found[i] == expected[i]
    with pytest.raises(IndexError, match="index must be in"):
        found[len(found)]


def test_worker_processes_can_have_it(prepared):
    found = source(prepared[1])
    assert pickle.loads(pickle.dumps(found))[3] == found[3]


def test_training_and_evaluation_read_it(prepared):
    data = ImagesConfig(name="imagenet2012", dir=prepared[1].parent.parent, image_size=16)
    spec = get_spec(data)
    builder = open_dataset(spec, data)
    dataset = train_images(
        open_split(builder, "train"),
        spec,
        data,
        AugmentConfig(),
        seed=0,
        batch_size=4,
        host=Host(),
    )
    batch = next(read(dataset, data, 0))
    assert batch["image"].shape == (4, 16, 16, 3)
    found = open_held_out(prepared[1])
    assert (len(found.images), found.classes) == (10, 1000)
    assert [int(found.images[i]["label"]) for i in range(10)] == [
        x["label"] for x in source(prepared[0], "validation")
    ]


def test_the_index_is_kept_while_files_are_the_same(prepared, tmp_path, cache, monkeypatch):
    version = tmp_path / "5.1.0"
    shutil.copytree(prepared[1], version)
    expected = source(version)[7]
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tfrecords, "_find_records", None)
        assert source(version)[7] == expected
    for damage in (b"", b"PK no zip", kept.read_bytes()[:100]):
        kept.write_bytes(damage)
        assert source(version)[7] == expected
    path = next(version.glob("*train*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is cut short or damaged"):
        source(version)


def test_a_cache_that_cannot_be_written_is_no_trouble(prepared, cache, capsys):
    cache.parent.write_text("a file where the folder should be")
    assert len(source(prepared[1])) == 34
    assert "index of TFRecord files is not kept" in capsys.readouterr().err


GOOD = framed(b"abc")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + GOOD[:-1], r"a record of 3 bytes at byte 19, but ends at 37"),
        (GOOD + GOOD[:5], "at byte 19, but ends at 24"),
        (
            GOOD + struct.pack("<Q", 2**63) + GOOD[8:],
            "record of 9223372036854775808 bytes at byte 19",
        ),
        (GOOD + struct.pack("<QI", 3, 7) + GOOD[12:], "wrong checksum at byte 19"),
        (GOOD, "must have 2 records, got 1"),
        (GOOD * 3, "must have 2 records, got 3"),
        (b"", "must have 2 records, got 0"),
        (b"\x89PNG\r\n\x1a\n" * 9, "cut short or damaged"),
    ],
    ids=range(8),
)
def test_hostile_files(tmp_path, data, message):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"x\.tfrecord .*{message}"):
        tfrecords._find_records(path, 2)


def test_a_missing_file_is_named(prepared, tmp_path):
    version = tmp_path / "5.1.0"
    shutil.copytree(prepared[1], version)
    path = next(version.glob("*train*"))
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        source(version)


def test_checksums():
    lengths = np.array([0, 1, 110_000, 2**40], np.uint64)
    expected = [crc32c(struct.pack("<Q", x)) for x in lengths.tolist()]
    assert tfrecords._crc32c(lengths).tolist() == expected
    assert crc32c(b"123456789") == 0xE3069283  # the published check value
