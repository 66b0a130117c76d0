"""What is seen while a run goes on: a bar on a terminal, plain lines elsewhere."""

import dataclasses
import time
from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from natjax.train import console
from natjax.train.reporting.throughput import Interval


def format_seconds(seconds: float | None) -> str:
    """Return ``1:02:03``, ``2:03`` or ``--:--`` where unknown."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What a line of progress says.

    Attributes:
      step: Steps done.
      epoch: Passes over the training examples done.
      quantities: What the task shows, in words such as ``"loss 0.1234"``; of means since the last
        line. Empty where every update was left out.
      learning_rate: Of the last step.
      unit: What the examples are.
      interval: How fast the steps since the last line were; None for the first, which compile.
      mfu: Share of the devices' peak, or None where it is not known.
      memory: Most bytes that a device has had in use, or None where it is not known.
      left: Seconds left, or None.
      skipped: Updates left out since the last line.
    """

    step: int
    epoch: float
    quantities: Sequence[str]
    learning_rate: float
    unit: str
    interval: Interval | None = None
    mfu: float | None = None
    memory: int | None = None
    left: float | None = None
    skipped: int = 0

    def __str__(self) -> str:
        words = [f"epoch {self.epoch:.2f}", *self.quantities]
        words.append(f"lr {self.learning_rate:.2e}")
        if self.interval is not None:
            words.append(f"{self.interval.rate:,.0f} {self.unit}/s")
            words.append(f"data wait {self.interval.data_wait:.0%}")
        if self.mfu is not None:
            words.append(f"MFU {self.mfu:.1%}")
        if self.memory is not None:
            words.append(f"{self.memory / 1e9:.1f} GB")
        if self.skipped:
            words.append(f"{self.skipped} skipped")
        return "  ".join(words)


class ProgressDisplay:
    """Shows where a run is: a bar on a terminal, plain lines elsewhere. A context manager.

    Args of the constructor: steps in all, steps done before, and seconds between plain lines.
    """

    def __init__(self, total: int, done: int, every: float = 2.0):
        self._total, self._every, self._last = total, every, float("-inf")
        self._bar: Progress | None = None
        if console.is_terminal():
            self._bar = Progress(
                BarColumn(12),
                MofNCompleteColumn(),
                TextColumn("left {task.fields[left]}"),
                # Cut off where the terminal is narrow.
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
                console=console.console(),
                expand=True,
            )
            self._task = self._bar.add_task("compiling", total=total, completed=done, left="--:--")

    def show(self, shown: Shown) -> None:
        """Show the state after a step."""
        left = format_seconds(shown.left)
        if self._bar is not None:
            self._bar.update(self._task, completed=shown.step, description=str(shown), left=left)
        elif shown.step == self._total or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            console.say(f"step {shown.step:>6}/{self._total}  {shown}  left {left}")

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        else:
            console.say("Compiling; the first lines come in about half a minute")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
