"""One line on the terminal that shows how far a download is."""

import sys
import time
from types import TracebackType

_WIDTH = 20
_PERIOD = 0.1  # seconds between two drawings


class ProgressBar:
    """Bar on the standard error stream; silent where that is no terminal.

    Args:
      name: What is shown before the bar.
      enabled: Whether to show anything.
    """

    def __init__(self, name: str, enabled: bool):
        self._name = name
        self._enabled = enabled and sys.stderr.isatty()
        self._drawn = 0.0
        self._length = 0
        self._start: tuple[float, int] | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._length:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def show(self, done: int, total: int | None) -> None:
        """Draw the state, not more often than is of use.

        Args:
          done: Bytes that are there.
          total: Bytes in all, where known.
        """
        now = time.monotonic()
        self._start = self._start or (now, done)  # what an earlier attempt left costs no time
        if not self._enabled or (now - self._drawn < _PERIOD and done != total):
            return
        began, before = self._start
        speed = (done - before) / max(now - began, 1e-3)
        line = f"{self._name} {describe_progress(done, total)}, {speed / 1e6:.1f} MB/s"
        sys.stderr.write(f"\r{line:<{self._length}}")
        sys.stderr.flush()
        self._drawn, self._length = now, len(line)


def describe_progress(done: int, total: int | None) -> str:
    """Return the bar and the numbers as text.

    Args:
      done: Bytes that are there.
      total: Bytes in all, where known.
    """
    if not total:
        return f"{done / 1e6:.1f} MB"
    filled = _WIDTH * min(done, total) // total
    bar = "#" * filled + "." * (_WIDTH - filled)
    return f"[{bar}] {done / total:4.0%} of {total / 1e6:.1f} MB"
