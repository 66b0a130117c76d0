import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import imagenet_tar
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2

from natjax.cli import main
from natjax.train.data import prepared
from natjax.train.errors import UserError
from natjax.train.tasks.classification.datasets import imagenet_prepare
from natjax.train.tasks.classification.datasets.imagenet_tars import ARCHIVES, Photos, index_archive

TRAIN, VALIDATION, TEST = ARCHIVES
_SMALL_SHARD = 1 << 13  # so that little data makes several shards


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    imagenet_tar.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tars, tmp_path_factory):
    """What TFDS itself makes of the archives."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_utils.ShardConfig, "min_shard_size", _SMALL_SHARD)
        imagenet_tar.prepare(folder, tars)
    return folder / "imagenet2012" / "5.1.0"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", _SMALL_SHARD)


def command(tars, root, *options):
    words = ["data", "prepare", "imagenet2012", "--manual-dir", tars, "--prepared-dir", root]
    return main([str(word) for word in (*words, *options)])


@pytest.fixture(scope="module")
def whole(tars, tmp_path_factory):
    """What we make of them, in one process, uninterrupted."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_utils.ShardConfig, "min_shard_size", _SMALL_SHARD)
        return imagenet_prepare.prepare(tars, root, partial=True)


def assert_same(made, expected):
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in expected.iterdir())
    for path in expected.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name


def records(path):
    """Records of a file; protobuf writes a map in any order, so they are compared parsed."""
    source = array_record_data_source.ArrayRecordDataSource([str(path)])
    return [tf_example_pb2.Example.FromString(source[i]) for i in range(len(source))]


def test_shards_order_and_contents_are_those_of_tfds_itself(whole, reference):
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in reference.iterdir())
    assert len(list(whole.glob("*-train.array_record-*"))) > 4
    for path in reference.glob("*.array_record-*"):
        assert records(whole / path.name) == records(path)
    for name in ("features.json", "label.labels.txt"):
        assert (whole / name).read_bytes() == (reference / name).read_bytes()
    mine, theirs = (json.loads((x / "dataset_info.json").read_text()) for x in (whole, reference))
    theirs["moduleName"] = "tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder"
    assert mine == theirs


def test_the_command(tars, tmp_path, whole, capsys):
    assert command(tars, tmp_path, "--partial", "--workers", 1) == 0
    made = tmp_path / "imagenet2012" / "5.1.0"
    assert f"imagenet2012 is prepared in {made}" in capsys.readouterr().out
    assert_same(made, whole)


def test_the_official_class_reads_it(whole):
    skip = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source(
        "imagenet2012", data_dir=whole.parent.parent, split="train", download=False, decoders=skip
    )
    photos = imagenet_tar.train_photos()
    found = {record["file_name"].decode(): record["image"] for record in source}
    assert set(found) == set(photos)
    odd = {"n02105855_2933.JPEG", "n01739381_1309.JPEG"}
    for name, data in found.items():
        assert (data == photos[name]) == (name not in odd)
    for name in odd:
        image = Image.open(io.BytesIO(found[name]))
        assert (image.format, image.mode) == ("JPEG", "RGB")


def test_several_processes_write_the_same(tars, tmp_path, whole):
    assert_same(imagenet_prepare.prepare(tars, tmp_path, workers=2, partial=True), whole)


def test_a_second_time_nothing_is_done(tars, tmp_path, capsys):
    made = imagenet_prepare.prepare(tars, tmp_path, partial=True)
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert imagenet_prepare.prepare(Path("/nowhere"), tmp_path, partial=True) == made
    assert before == {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert command(tars, tmp_path) == 2
    error = capsys.readouterr().err
    assert "prepared from a part of ImageNet (train has 34 of 1,281,167 photos" in error
    assert "pass --partial to leave it" in error


_KILLED = """
import os, signal, sys
from pathlib import Path
from tensorflow_datasets.core.utils import shard_utils
from natjax.train.tasks.classification.datasets import imagenet_prepare as m
shard_utils.ShardConfig.min_shard_size = int(sys.argv[3])
made, calls = m._records, []
def killed(shard, descriptor):
    calls.append(shard)
    for i, record in enumerate(made(shard, descriptor)):
        if len(calls) == 3 and i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record
m._records = killed
m.prepare(Path(sys.argv[1]), Path(sys.argv[2]), partial=True)
"""


@pytest.fixture(scope="module")
def killed(tars, tmp_path_factory):
    """A preparation that was killed in the middle of its third shard."""
    root = tmp_path_factory.mktemp("killed")
    words = [sys.executable, "-P", "-c", _KILLED, tars, root, _SMALL_SHARD]
    done = subprocess.run(list(map(str, words)), check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return root


def test_a_killed_preparation_goes_on(killed, tars, tmp_path, whole, monkeypatch):
    shutil.copytree(killed, tmp_path / "x")  # times of change are kept
    work = tmp_path / "x" / "imagenet2012" / "preparing"
    assert len(list(work.glob("*.tmp"))) == 1
    kept = [path for path in work.glob("*array_record-*") if path.suffix != ".tmp"]
    assert len(kept) == 2
    assert prepared.find_version(tmp_path / "x", "imagenet2012") is None
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    written = []
    write = imagenet_prepare.write_shard
    monkeypatch.setattr(
        imagenet_prepare, "write_shard", lambda shard: written.append(shard) or write(shard)
    )
    made = imagenet_prepare.prepare(tars, tmp_path / "x", partial=True)
    assert_same(made, whole)
    assert not work.exists()
    assert {shard.path.name for shard in written}.isdisjoint(before)
    assert before == {name: (made / name).stat().st_mtime_ns for name in before}


def test_shards_of_other_archives_are_not_kept(killed, tars, tmp_path):
    shutil.copytree(killed, tmp_path / "x")
    shutil.copytree(tars, tmp_path / "tars")
    photos = imagenet_tar.train_photos()
    photos["n01440764_1.JPEG"] = imagenet_tar.photo(77)
    imagenet_tar.write_train(tmp_path / "tars", photos)
    made = imagenet_prepare.prepare(tmp_path / "tars", tmp_path / "x", partial=True)
    assert_same(made, imagenet_prepare.prepare(tmp_path / "tars", tmp_path / "y", partial=True))


def test_incomplete_archives_are_refused(tars, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    shutil.copy(tars / TRAIN.file, tmp_path / "tars")
    assert command(tmp_path / "tars", tmp_path / "data") == 2
    error = capsys.readouterr().err
    assert "ILSVRC2012_img_train.tar has 34 of 1,281,167 photos" in error
    assert "ILSVRC2012_img_val.tar is missing" in error
    assert "pass --partial" in error
    assert command(tmp_path, tmp_path / "data") == 2
    assert "must hold the official archives of ImageNet" in capsys.readouterr().err
    assert prepared.find_version(tmp_path / "data", "imagenet2012") is None


def test_a_missing_class_is_told(monkeypatch):
    monkeypatch.setattr(
        imagenet_prepare, "ARCHIVES", (imagenet_prepare.Archive("train", "x.tar", 4),)
    )
    labels = np.array([0, 1, 1, 2])
    photos = Photos(np.array([b"a", b"b", b"c", b"d"]), labels, labels, labels)
    with pytest.raises(UserError, match=r"x\.tar has 3 of 1000 classes"):
        imagenet_prepare._check_counts(Path("x"), {"train": photos})


def test_the_disk_is_looked_at_first(tars, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert command(tars, tmp_path, "--partial") == 2
    assert "GB free for what is still to be written" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*array_record*"))


def test_a_full_disk_leaves_nothing_that_looks_whole(tars, tmp_path, monkeypatch, capsys):
    def full(path, records):
        list(records)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    adapter = imagenet_prepare.file_adapters.ArrayRecordFileAdapter
    monkeypatch.setattr(adapter, "write_examples", full)
    assert command(tars, tmp_path, "--partial", "--workers", 1) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*array_record*"))


def test_archives_that_change_meanwhile(tars, tmp_path, monkeypatch):
    shutil.copytree(tars, tmp_path / "tars")
    write = imagenet_prepare.write_shard

    def changing(shard):
        write(shard)
        os.utime(shard.archive)

    monkeypatch.setattr(imagenet_prepare, "write_shard", changing)
    with pytest.raises(UserError, match="tars has changed meanwhile; run the same command again"):
        imagenet_prepare.prepare(tmp_path / "tars", tmp_path, partial=True)
    assert prepared.find_version(tmp_path, "imagenet2012") is None
    monkeypatch.undo()
    imagenet_prepare.prepare(tmp_path / "tars", tmp_path, partial=True)


def test_ctrl_c(tars, tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet_prepare, "write_shard", interrupted)
    assert command(tars, tmp_path, "--partial", "--workers", 1) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err


def test_a_second_preparation_waits(tars, tmp_path, capsys):
    made = []
    with prepared.locked(tmp_path / ".imagenet2012.lock"):
        thread = threading.Thread(
            target=lambda: made.append(imagenet_prepare.prepare(tars, tmp_path, partial=True))
        )
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not (tmp_path / "imagenet2012").exists()
    thread.join(60)
    assert made == [tmp_path / "imagenet2012" / "5.1.0"]
    assert "waiting for another process" in capsys.readouterr().err


def test_a_damaged_odd_photo_is_named(tmp_path):
    photos = imagenet_tar.train_photos() | {"n02105855_2933.JPEG": b"no image"}
    imagenet_tar.write_train(tmp_path / "tars", photos)
    with pytest.raises(UserError, match=r"holds a damaged n02105855_2933\.JPEG"):
        imagenet_prepare.prepare(tmp_path / "tars", tmp_path, partial=True)


def test_lengths_of_records_before_they_are_made():
    rng = np.random.default_rng(0)
    labels = np.array([-1, 0, 1, 127, 128, 999] * 3)
    sizes = np.concatenate([[0, 1, 127, 128, 16383, 16384], rng.integers(0, 3_000_000, 12)])
    names = np.array([b"n" * length for length in rng.integers(1, 30, 18)])
    photos = Photos(names, sizes, sizes, labels)
    features, serializer = imagenet_prepare._serializer()
    expected = [
        len(
            serializer.serialize_example(
                features.encode_example(
                    {"file_name": name.decode(), "image": bytes(size), "label": label}
                )
            )
        )
        for name, size, label in zip(names, sizes.tolist(), labels.tolist(), strict=True)
    ]
    assert imagenet_prepare.record_lengths(photos, sizes).tolist() == expected


def member(name, data=b"x", **changes):
    """A member of a tar, header and data, with some of its header changed."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    padding = b"\0" * (-len(data) % 512)
    return info.tobuf(tarfile.GNU_FORMAT) + data + padding


END = b"\0" * 1024
A, B = member("n01440764_1.JPEG"), member("n01440764_2.JPEG")


def synset(*members, name="n01440764.tar"):
    return member(name, b"".join(members) + END)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (synset(A, B), r"img_train\.tar ends at byte .* without its mark of the end: cut short"),
        (synset(A, B)[:700], r"holds 'n01440764\.tar' of 3072 bytes at byte 512, but ends at 700"),
        (b"", "cut short"),
        (END, "must hold photos, got none"),
        (b"\x1f\x8b" + bytes(600), "damaged header at byte 0"),
        (
            synset(member("n01440764_1.JPEG", size=9999)) + END,
            r"n01440764\.tar, holds 'n01440764_1\.JPEG'",
        ),
        (synset(A, b"y" + B[1:]) + END, r"n01440764\.tar, has a damaged header at byte 1536"),
        (synset(A, A) + END, r"every photo once, got n01440764_1\.JPEG more often"),
        (synset(A) + synset(B) + END, r"every synset once, got 'n01440764\.tar'"),
        (synset(A, name="n99999999.tar") + END, r"1000 synsets, got 'n99999999\.tar'"),
        (synset(A, name="n01440764.zip") + END, r"1000 synsets, got 'n01440764\.zip'"),
        (synset(A, name="../n01440764.tar") + END, r"got '\.\./n01440764\.tar'"),
        (synset(member("../../x.JPEG")) + END, r"named n01440764_NUMBER\.JPEG, got '\.\./\.\./x"),
        (synset(member("n01440764_1.JPEG\n")) + END, r"got 'n01440764_1\.JPEG\\n'"),
        (synset(member("n01443537_1.JPEG")) + END, r"NUMBER\.JPEG, got 'n01443537_1\.JPEG'"),
        (
            member("n01440764.tar", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd") + END,
            r"plain files, got 'n01440764\.tar': links, devices",
        ),
        (synset(member("n01440764_1.JPEG", b"", type=tarfile.LNKTYPE)) + END, "plain files"),
        (member("n01440764.tar", size=2**60) + END, r"of 1152921504606846976 bytes"),
        (member("n01440764.tar", size=-512) + END, r"of -512 bytes"),
    ],
    ids=range(19),
)
def test_hostile_train_archives(tmp_path, data, message):
    path = tmp_path / TRAIN.file
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        index_archive(TRAIN, path, tmp_path / "index.npz")
    assert not (tmp_path / "index.npz").exists()


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG"])
def test_hostile_validation_archives(tmp_path, name):
    path = tmp_path / VALIDATION.file
    path.write_bytes(member(name) + END)
    with pytest.raises(UserError, match=f"00000001.JPEG to 00050000, got '{name}'"):
        index_archive(VALIDATION, path)


def test_validation_labels_go_by_number(tmp_path):
    path = tmp_path / VALIDATION.file
    numbers = (7, 2)
    path.write_bytes(b"".join(member(f"ILSVRC2012_val_{i:08}.JPEG") for i in numbers) + END)
    labels = imagenet_tar.official_labels(7)
    assert index_archive(VALIDATION, path).labels.tolist() == [labels[6], labels[1]]


def test_test_photos_in_a_folder(tmp_path):
    path = tmp_path / TEST.file
    folder = member("./test/", b"", type=tarfile.DIRTYPE)
    path.write_bytes(folder + member("./test/ILSVRC2012_test_00000001.JPEG") + END)
    found = index_archive(TEST, path)
    assert found.names.tolist() == [b"test/ILSVRC2012_test_00000001.JPEG"]
    assert found.labels.tolist() == [-1]


def test_the_index_is_kept_while_the_archive_is_the_same(tars, tmp_path):
    path, cache = tmp_path / TRAIN.file, tmp_path / "index.npz"
    shutil.copy2(tars / TRAIN.file, path)
    found = index_archive(TRAIN, path, cache)
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = index_archive(TRAIN, path, cache)
    for name in ("names", "offsets", "sizes", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(UserError, match="must hold photos"):
        index_archive(TRAIN, path, cache)
    shutil.copy2(tars / TRAIN.file, path)
    cache.write_bytes(b"PK garbage")
    assert index_archive(TRAIN, path, cache).offsets.tolist() == found.offsets.tolist()
