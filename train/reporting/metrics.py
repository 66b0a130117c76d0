"""Metrics of a run: a JSON object a line, and always what an uninterrupted run would have written.

Kinds of lines: ``{"kind": "train", "step", "epoch", "loss", ...}``, means over the steps since the
line before, and ``{"kind": "eval", "step", "epoch", "weights": "raw" | "ema", ...}`` with the
scores of the task. Steps are counted from 1: step n is the state after n updates, and ``epoch`` the
passes over the training examples in them. Only ``..._per_second``, ``data_wait``, ``mfu`` and
``peak_memory_bytes`` depend on clock and machine; they are of the steps since the line before, but
for the last, which is of this process so far. The first line of a process has none of the others.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from natjax.train.files import write_whole

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """How a number is shown.

    Attributes:
      title: What to call it.
      format: Python's format, such as ``".2%"``.
    """

    title: str
    format: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture of learning curves.

    Attributes:
      title: Its heading.
      training: Name in the lines of training, if any.
      score: Name in the lines of evaluation, if any.
      training_title: What to call the curve of training.
      percent: Whether the numbers are shares.
    """

    title: str
    training: str | None = None
    score: str | None = None
    training_title: str = "training"
    percent: bool = False


def read_metrics(path: Path) -> Iterator[Line]:
    """Yield the lines of a file up to the first that is not whole; none where there is no file."""
    if not path.exists():
        return
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return  # cut off when the run was killed; nothing after it counts
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            return
        yield line


def drop_after(path: Path, step: int, evaluated: bool = True) -> None:
    """Drop lines past `step`, as they will be written again; the file is replaced at once.

    Args:
      path: The file; it need not exist.
      step: Step of the checkpoint from which the run goes on; 0 empties the file.
      evaluated: Whether the evaluation after that step, if any, was before the checkpoint; if not,
        its lines go too.
    """

    def stays(line: Line) -> bool:
        return line["step"] < step + (evaluated or line.get("kind") != "eval")

    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if stays(line)]
    write_whole(path, "".join(kept))


class MetricsWriter:
    """Appends lines, each of them flushed before the next checkpoint can refer to it.

    Args of the constructor: the file, whether this process writes, and what else is to be done with
    every line.
    """

    def __init__(self, path: Path, writes: bool = True, also: Callable[[Line], None] | None = None):
        self._file = path.open("a") if writes else None
        self._also = also

    def write(self, **line: Any) -> None:
        """Append one line.

        Raises:
          OSError: the disk is full.
        """
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._also is not None:
                self._also(line)

    def close(self) -> None:
        """Close the file; more calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
