"""What is taken for what: counts, files, pictures."""

import csv

import numpy as np
import pytest
from PIL import Image

from natjax.train.reporting.confusion import confusion_of, count_pairs, write_counts
from natjax.train.reporting.confusion_map import plot_confusion


def counted(matrix: np.ndarray, batch: int = 7):
    """The confusion of a matrix of counts, in batches, the last one filled up."""
    labels, guesses = np.indices(matrix.shape).reshape(2, -1).repeat(matrix.ravel(), axis=1)
    order = np.random.default_rng(0).permutation(len(labels))
    fill = np.full(-len(labels) % batch, -1)
    labels = np.concatenate([labels[order], fill]).astype(np.int32).reshape(-1, batch)
    guesses = np.concatenate([guesses[order], 0 * fill]).astype(np.int32).reshape(-1, batch)
    return count_pairs(list(zip(labels, guesses, strict=True)))


def random_matrix(classes: int) -> np.ndarray:
    rng = np.random.default_rng(classes)
    return rng.poisson(2 / classes, (classes, classes)) + np.diag(rng.integers(1, 4, classes))


@pytest.mark.parametrize("classes", [2, 10, 57])
def test_counts_are_exact(classes):
    matrix = random_matrix(classes)
    for found in (counted(matrix), confusion_of(matrix)):
        np.testing.assert_array_equal(found.matrix(classes, classes), matrix)


def test_neighbouring_classes_share_a_cell():
    matrix = random_matrix(10)
    cells = counted(matrix).matrix(10, 4)  # of three classes, and one of one
    assert cells.shape == (4, 4)
    assert cells[0, 1] == matrix[:3, 3:6].sum()
    assert cells[3, 3] == matrix[9, 9]
    assert cells.sum() == matrix.sum()


def test_mistakes_come_most_frequent_first():
    matrix = np.diag([9, 9, 9])
    matrix[0, 2], matrix[2, 1], matrix[1, 0] = 3, 5, 3
    assert counted(matrix).mistakes(2) == [(2, 1, 5), (0, 2, 3)]


def test_images_without_a_guess_are_counted_but_not_drawn(tmp_path):
    found = count_pairs([(np.array([1, 1, 0]), np.array([-1, 1, 0]))])
    assert found.counts.sum() == 3
    assert found.matrix(2, 2).sum() == 2
    write_counts(found, ("a", "b"), tmp_path / "c.csv", unit="images")
    assert "1,b,-1,,1\n" in (tmp_path / "c.csv").read_text()


def test_the_counts_as_a_file(tmp_path):
    matrix = random_matrix(10)
    names = ["zero", 'say "one", or 1', *"23456789"]
    write_counts(counted(matrix), names, tmp_path / "c.csv", unit="images")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["label_name"], row["prediction_name"]) for row in rows} == {
        (names[a], names[b]) for a, b in np.argwhere(matrix)
    }
    for row in rows:
        assert int(row["images"]) == matrix[int(row["label"]), int(row["prediction"])]


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_picture(tmp_path, classes):
    names = [f"class {index} with a name that is far too long" for index in range(classes)]
    found = counted(random_matrix(classes))
    plot_confusion(found, names, tmp_path / "c.png", title="title", unit="images")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 500
        assert np.asarray(picture.convert("L")).std() > 5


def test_the_picture_of_a_network_without_a_fault(tmp_path):
    found = confusion_of(np.diag([3, 4_000_000]))
    plot_confusion(found, ("a", "b"), tmp_path / "c.png", title="title", unit="pixels")
    assert (tmp_path / "c.png").exists()
