"""What is seen while a run goes on: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from natjax.train import console


class Throughput:
    """Images a second and seconds left, not counting the first interval, which compiles.

    Args of the constructor: images a step, and the clock.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.monotonic):
        self._batch_size, self._clock = batch_size, clock
        self._start: tuple[int, float] | None = None
        self._paused = 0.0

    def start(self, step: int) -> None:
        """Begin to count at `step`; only the first call matters."""
        if self._start is None:
            self._start = (step, self._clock())

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not spent on training steps."""
        if self._start is not None:
            self._paused += seconds

    def rate(self, step: int) -> float:
        """Return images a second since `start`; 0 as long as nothing can be said."""
        if self._start is None or step <= self._start[0]:
            return 0.0
        seconds = self._clock() - self._start[1] - self._paused
        return (step - self._start[0]) * self._batch_size / max(seconds, 1e-9)

    def seconds_left(self, step: int, total: int) -> float | None:
        """Return the seconds that the steps left will take, without evaluations, or None."""
        rate = self.rate(step)
        return (total - step) * self._batch_size / rate if rate else None


def format_seconds(seconds: float | None) -> str:
    """Return ``1:02:03``, ``2:03`` or ``--:--`` where unknown."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressDisplay:
    """Shows step, loss, accuracy, images a second and time left. A context manager.

    Args of the constructor: steps in all, steps done before, and seconds between plain lines.
    """

    def __init__(self, total: int, done: int, every: float = 2.0):
        self._total, self._every, self._last = total, every, float("-inf")
        self._bar: Progress | None = None
        if console.is_terminal():
            self._bar = Progress(
                TextColumn("[bold]train[/]"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TextColumn("left {task.fields[left]}"),
                console=console.console(),
            )
            self._task = self._bar.add_task("compiling", total=total, completed=done, left="--:--")

    def show(
        self, step: int, *, loss: float, accuracy: float, rate: float, left: float | None
    ) -> None:
        """Show the state after `step`.

        Args:
          step: Steps done.
          loss: Mean loss since the last call, nats.
          accuracy: Mean accuracy on training batches, in [0, 1].
          rate: Images a second.
          left: Seconds left, or None.
        """
        text = f"loss {loss:.4f}  acc {accuracy:6.2%}  {rate:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=text, left=format_seconds(left)
            )
        elif step == self._total or time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            console.say(f"step {step:>6}/{self._total}  {text}  left {format_seconds(left)}")

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
