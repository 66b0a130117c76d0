import dataclasses
import time

import numpy as np
import pytest

from natjax.train.cluster.processes import Host
from natjax.train.config.settings import DataConfig
from natjax.train.data.pipeline import read, test_batches
from natjax.train.engine.evaluate import closed
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.examples import test_images, train_images


def batches(digits, *, seed=0, batch_size=16, host=Host(), augment=None):  # noqa: B008
    spec, train, _ = digits
    preset = presets.digits()
    augment = augment or preset.augment
    options = {"seed": seed, "batch_size": batch_size, "host": host}
    return train_images(train, spec, preset.data, augment, **options)


def equal(left, right) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in ("image", "label"))


def test_a_batch_is_a_function_of_seed_and_step(digits):
    first, second, other = batches(digits), batches(digits), batches(digits, seed=1)
    for step in (200, 0, 3):  # in any order, far beyond an epoch
        assert equal(first[step], second[step])
        assert not equal(first[step], other[step])
    batch = first[0]
    assert batch["image"].shape == (16, 32, 32, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("threads", [1, 5])
def test_resuming_gives_the_batches_that_would_have_come(digits, config, threads):
    data = dataclasses.replace(config.data, threads=threads)
    whole = read(batches(digits), data, 0)
    expected = [next(whole) for _ in range(8)]
    resumed = read(batches(digits), data, 5)
    for batch in expected[5:]:
        assert equal(next(resumed), batch)


def test_hosts_share_the_global_batch(digits):
    whole = batches(digits)
    halves = [batches(digits, host=Host(index, 2)) for index in range(2)]
    for step in (0, 7):
        for index, half in enumerate(halves):
            part = slice(8 * index, 8 * index + 8)
            rows = {name: values[part] for name, values in whole[step].items()}
            assert equal(half[step], rows)


def test_an_epoch_holds_every_record_once_and_the_next_is_in_another_order(digits):
    _, train, _ = digits
    labels = np.concatenate([batches(digits, batch_size=3)[step]["label"] for step in range(958)])
    first, second = labels[:1437], labels[1437:]
    expected = np.bincount([train[i]["label"] for i in range(1437)])
    np.testing.assert_array_equal(np.bincount(first), expected)
    np.testing.assert_array_equal(np.bincount(second), expected)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("options", [{"threads": 4}, {"workers": 1}])
def test_threads_and_workers_change_nothing_of_what_is_random(digits, config, options):
    """All that is drawn for an image comes from its own stream."""
    full = presets.emoji().augment
    expected = batches(digits, augment=full)
    data = dataclasses.replace(config.data, **{"threads": 1, "workers": 0} | options)
    found = read(batches(digits, augment=full), data, 3)
    for step in (3, 4, 5):
        assert equal(next(found), expected[step])


def test_hosts_share_what_is_random_too(digits):
    full = presets.emoji().augment
    whole = batches(digits, augment=full)[2]
    for index in range(2):
        half = batches(digits, augment=full, host=Host(index, 2))[2]
        rows = {name: values[8 * index : 8 * index + 8] for name, values in whole.items()}
        assert equal(half, rows)
    assert not equal(whole, batches(digits)[2])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [64, 100, 360, 512])
def test_evaluation_holds_every_record_once(digits, batch_size, count):
    spec, _, test = digits
    hosts = [Host(index, count) for index in range(count)]
    labels = []
    for host in hosts:
        dataset = test_images(test, spec, presets.digits().data, batch_size=batch_size, host=host)
        parts = list(dataset)
        assert len(parts) == len(dataset)
        assert all(len(part["label"]) == batch_size // count for part in parts)
        labels.append([part["label"][part["mask"]] for part in parts])
    expected = np.array([test[i]["label"] for i in range(360)])
    # Side by side, the parts of the hosts are the records in order.
    rows = [part for step in zip(*labels, strict=True) for part in step]
    np.testing.assert_array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("threads", [1, 16])
def test_evaluation_is_never_far_ahead_of_what_was_taken(threads):
    made = []

    def example(index):
        made.append(index)
        return {"index": np.array(index)}

    data = DataConfig(name="numbers", threads=threads)
    with closed(iter(test_batches(100_000, example, data, batch_size=8, host=Host()))) as batches:
        for taken in range(1, 4):
            next(batches)
            time.sleep(0.1)  # for threads that would go on
            assert taken * 8 <= len(made) <= (taken + max(4, threads)) * 8
    time.sleep(0.1)
    count = len(made)
    time.sleep(0.1)
    assert len(made) == count  # the threads have ended


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_make_the_same_evaluation(digits, workers):
    spec, _, test = digits
    data = presets.digits().data
    options = {"batch_size": 200, "host": Host()}
    expected = list(test_images(test, spec, data, **options))
    data = dataclasses.replace(data, workers=workers)
    found = list(test_images(test, spec, data, **options))
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("image", "mask", "id"))


# natjax's functions, not tests
test_images.__test__ = False
test_batches.__test__ = False
