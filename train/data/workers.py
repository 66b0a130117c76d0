"""Processes that decode and augment: how they start, and what happens when one dies."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

from natjax.train import console
from natjax.train.errors import TrainingError

# Deaths that are forgiven within so many steps.
_FORGIVEN, _STEPS = 3, 100
_DEATH = "Worker process was terminated unexpectedly"  # what Grain says


def die_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end at once when it is gone: call it first in a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_worker(index: int, count: int) -> None:
    """Prepare a worker process; Grain calls it.

    Ctrl-C reaches every process of a terminal, but the run needs its workers until it has stopped.
    A worker ends when the run is killed, however it is killed.

    Args:
      index: Which worker this is.
      count: How many there are.
    """
    del index, count
    die_with_parent()


def restart_workers[T](make: Callable[[int], Iterator[T]], start: int) -> Iterator[T]:
    """Yield what `make` yields, starting anew at the same step where a worker process has died.

    Since a batch is a pure function of the step, nothing is lost or repeated.

    Args:
      make: Makes the iterator from a step on; one with ``close`` is closed.
      start: The first step.

    Raises:
      TrainingError: workers die again and again.
    """
    step, deaths = start, []
    batches = make(step)
    try:
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if _DEATH not in str(error):
                    raise
                deaths = [death for death in deaths if death > step - _STEPS] + [step]
                _report(step, len(deaths), str(error))
                _close(batches)
                batches = make(step)
                continue
            yield batch
            step += 1
    except StopIteration:
        return
    finally:
        _close(batches)


def _report(step: int, deaths: int, text: str) -> None:
    words = text.removeprefix(_DEATH).split(".")[0].strip()
    told = f"a data worker process was killed ({words}) before step {step + 1}"
    if deaths > _FORGIVEN:
        raise TrainingError(
            f"{told}, the {deaths}th within {_STEPS} steps; if memory is short, give fewer"
            " --data.workers. The same command continues from the last checkpoint"
        )
    console.warn(f"{told}; starting the workers again")


def _close(batches: object) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
