"""What is taken for what: exact counts of pairs of label and prediction."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from natjax.train.files import write_whole


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of the pairs that occur; the others, nearly all of 1000 x 1000, are not stored.

    Attributes:
      labels: True class of each pair.
      guesses: Predicted class of each pair; -1 where the network gave no number.
      counts: How many there are of each pair.
    """

    labels: Int[np.ndarray, " P"]
    guesses: Int[np.ndarray, " P"]
    counts: Int[np.ndarray, " P"]

    def matrix(self, classes: int, cells: int) -> Int[np.ndarray, "M M"]:
        """Return counts by label (rows) and guess, neighbouring classes together in one cell.

        Args:
          classes: Number of classes.
          cells: Largest number of rows.
        """
        together = -(-classes // cells)
        side = -(-classes // together)
        counted = self.guesses >= 0
        place = self.labels[counted] // together * side + self.guesses[counted] // together
        sums = np.bincount(place, weights=self.counts[counted], minlength=side * side)
        return sums.astype(np.int64).reshape(side, side)

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """Return label, guess and count of the most frequent mistakes, most frequent first."""
        wrong = np.flatnonzero((self.labels != self.guesses) & (self.guesses >= 0))
        order = wrong[np.argsort(-self.counts[wrong], kind="stable")][:most]
        columns = (self.labels[order], self.guesses[order], self.counts[order])
        return [(int(a), int(b), int(c)) for a, b, c in zip(*columns, strict=True)]


def confusion_of(matrix: Int[np.ndarray, "L L"]) -> Confusion:
    """Return the counts of a matrix of labels (rows) and guesses."""
    labels, guesses = np.nonzero(matrix)
    return Confusion(labels, guesses, matrix[labels, guesses])


def count_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Confusion:
    """Return the counts of labels and guesses that came batch by batch; masked labels are -1."""
    rows = [np.stack([labels, guesses], axis=1) for labels, guesses in pairs]
    whole = np.concatenate([np.empty((0, 2), np.int64), *rows]).astype(np.int64)
    unique, counts = np.unique(whole[whole[:, 0] >= 0], axis=0, return_counts=True)
    return Confusion(unique[:, 0], unique[:, 1], counts)


def write_counts(
    confusion: Confusion, class_names: Sequence[str], path: Path, *, unit: str
) -> None:
    """Write a CSV file: label, its name, prediction, its name, and the count under `unit`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "label_name", "prediction", "prediction_name", unit))
    columns = (confusion.labels, confusion.guesses, confusion.counts)
    for label, guess, count in zip(*(column.tolist() for column in columns), strict=True):
        name = class_names[guess] if guess >= 0 else ""
        writer.writerow((label, class_names[label], guess, name, count))
    write_whole(path, text.getvalue())
