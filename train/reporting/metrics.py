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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from natjax.train.files import write_whole

Line = dict[str, Any]
_LABELS = ("kind", "step", "weights")


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


def scalars(line: Line, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the numbers of a line under names such as ``train/loss`` and ``eval_ema/top1``.

    Args:
      line: A line.
      leave_out: Names of what is no curve.
    """
    group = "_".join(str(line[name]) for name in ("kind", "weights") if name in line)
    return {
        f"{group}/{name}": value
        for name, value in line.items()
        if name not in (*_LABELS, *leave_out) and value is not None
    }


@runtime_checkable
class Sink(Protocol):
    """What mirrors the lines elsewhere."""

    def add(self, line: Line) -> None:
        """Take one line."""

    def close(self) -> None:
        """End; called once."""


class MetricsWriter:
    """Appends lines, each of them flushed before the next checkpoint can refer to it.

    Args of the constructor: the file, whether this process writes, and who else gets every line.
    """

    def __init__(self, path: Path, writes: bool = True, sinks: Sequence[Sink] = ()):
        self._file = path.open("a") if writes else None
        self._sinks = tuple(sinks)

    def write(self, **line: Any) -> None:
        """Append one line.

        Raises:
          OSError: the disk is full.
        """
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for sink in self._sinks:
                sink.add(line)

    def close(self) -> None:
        """Close the file and the sinks; more calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            for sink in self._sinks:
                sink.close()
