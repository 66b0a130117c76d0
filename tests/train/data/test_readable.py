import dataclasses
import pickle

import numpy as np
import pytest
from damaged_photos import Photos

from natjax.train.cluster.processes import Host
from natjax.train.data.pipeline import read
from natjax.train.data.readable import DecodeImage, Readable, UnreadableError
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.tasks.classification.datasets.registry import get_spec
from natjax.train.tasks.classification.examples import test_images, train_images

test_images.__test__ = False  # natjax's function, not a test

DATA = ImagesConfig(name="imagenet2012", image_size=16)
SPEC = get_spec(DATA)


def labels(source, threads=1, workers=0):
    data = dataclasses.replace(DATA, threads=threads, workers=workers)
    dataset = train_images(source, SPEC, data, AugmentConfig(), seed=3, batch_size=4, host=Host())
    batches = read(dataset, data, 0)
    found = np.concatenate([next(batches)["label"] for _ in range(10)])  # two epochs
    if workers:
        batches.close()
    return found.tolist()


def test_the_next_readable_record_takes_the_place(capsys):
    bad = {4: 5, 9: 12, 10: 12, 11: 12, 19: 0}
    expected = [bad.get(i, i) for i in labels(Photos(20, ()))]
    damaged = Photos(20, bad)
    assert labels(damaged) == expected
    error = capsys.readouterr().err
    for i in bad:  # in the second epoch they are not named again
        assert error.count(f"cannot read train image {i}:") == 1
    assert labels(damaged, threads=3) == expected


def test_worker_processes_name_them_too(capfd):
    good = labels(Photos(20, ()))
    assert labels(Photos(20, (4,)), workers=1) == [5 if i == 4 else i for i in good]
    assert "cannot read train image 4:" in capfd.readouterr().err


def test_evaluation_leaves_them_out(capsys):
    dataset = test_images(Photos(6, (1, 4)), SPEC, DATA, batch_size=4, host=Host())
    batches = list(dataset)
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [
        *(True, False, True, True),
        *(False, True, False, False),
    ]
    assert [batch["image"].shape for batch in batches] == [(4, 16, 16, 3)] * 2
    assert capsys.readouterr().err.count("cannot read validation image") == 2


def test_too_many_are_an_error():
    with pytest.raises(UnreadableError, match="3 images in a row of train cannot be read, from"):
        Readable(Photos(3, range(3)), DecodeImage(3), "train")[1]
    readable = Readable(Photos(60, range(0, 60, 2)), DecodeImage(3), "train")
    for i in range(32):
        readable.get(i)
    with pytest.raises(UnreadableError, match="17 of 60 images of train cannot be read"):
        readable.get(32)


def test_each_process_counts_its_own():
    readable = Readable(Photos(4, (1,)), DecodeImage(3), "train", warns=False)
    assert readable.get(1) is None
    copy = pickle.loads(pickle.dumps(readable))
    assert copy._seen.bad == set()
    assert copy[1]["label"] == 2


def test_other_processes_say_nothing(capsys):
    assert Readable(Photos(4, (1,)), DecodeImage(3), "train", warns=False)[1]["label"] == 2
    assert capsys.readouterr().err == ""
