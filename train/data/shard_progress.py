"""How far the writing of a data set is: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from natjax.train import console

_PLAIN_EVERY = 60.0  # seconds


class ShardProgress:
    """Counts bytes and files; a context manager.

    It is made from the bytes of all files, and of those that are still to be written.
    """

    def __init__(self, text: str, shards: Sequence[int], missing: Sequence[int]):
        self._text = text
        self._total, self._left = sum(shards), len(missing)
        self._done = self._total - sum(missing)
        self._began, self._at_first = time.monotonic(), self._done
        self._said = self._began
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console.console(),
            disable=not console.is_terminal(),
        )
        self._task = self._bar.add_task(text, total=self._total, completed=self._done)
        if self._at_first:
            console.say(f"{len(shards) - len(missing)} of {len(shards)} shards are there already")

    def __enter__(self) -> "ShardProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def wrote(self, count: int) -> None:
        """Count a shard that is whole, by its bytes."""
        self._done += count
        self._left -= 1
        self._bar.update(self._task, completed=self._done)
        now = time.monotonic()
        if not console.is_terminal() and (now - self._said > _PLAIN_EVERY or not self._left):
            self._said = now
            rate = (self._done - self._at_first) / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate / 60
            console.say(
                f"{self._text}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB,"
                f" {rate / 1e6:.0f} MB/s, {left:.0f} min left"
            )
