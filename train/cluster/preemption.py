"""Stopping when asked: SIGTERM (preemption) and Ctrl-C end a run after a step, with all saved.

A job of several processes stops everywhere after the same step, although the notice may reach one
of them alone: JAX's preemption service takes SIGTERM there and agrees on the step.
"""

import itertools
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from jax.experimental.multihost_utils import reached_preemption_sync_point

from natjax.train import console
from natjax.train.cluster import processes

# Numbers the questions of this process; the service wants them to grow for as long as it lives.
_QUESTIONS = itertools.count(1)


class StopRequestedError(Exception):
    """Raised inside an evaluation that is broken off; never leaves the loop."""


class StopSignals:
    """Takes note of SIGTERM and SIGINT while it is entered. A context manager.

    A second Ctrl-C interrupts at once. Outside of the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self._several = processes.count() > 1
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def number(self) -> int:
        """The signal that this process got; SIGTERM where only another process got one."""
        return signal.SIGTERM if self._received is None else self._received

    def due(self) -> bool:
        """Whether to stop now. Every process of a job must ask equally often."""
        if self._several:
            return reached_preemption_sync_point(next(_QUESTIONS))
        return self._received is not None

    def watch[T](self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items.

        Raises:
          StopRequestedError: it is time to stop.
        """
        iterator = iter(items)
        try:
            for item in iterator:
                if self.due():
                    raise StopRequestedError
                yield item
        finally:
            getattr(iterator, "close", lambda: None)()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            # Of several processes, each leaves SIGTERM to JAX.
            ours = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
            self._before = {number: signal.signal(number, self._note) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: set by what is not Python, which cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT == self._received:
            raise KeyboardInterrupt
        self._received = number
        if number == signal.SIGINT:
            console.notice("stopping after this step; Ctrl-C again stops at once")
            if self._several:
                signal.raise_signal(signal.SIGTERM)
