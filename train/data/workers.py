"""Processes that decode and augment: how they start, and what happens when one dies."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from natjax.train import console
from natjax.train.errors import TrainingError

# Deaths that are forgiven within so many steps.
_FORGIVEN, _STEPS = 3, 100
_DEATH = "Worker process was terminated unexpectedly"  # what Grain says, and with what exit code
# Workers hand batches over in shared memory; one that writes where that is full ends by SIGBUS.
_SHARED_MEMORY, _FULL = Path("/dev/shm"), f"exit code {-signal.SIGBUS}"


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
      TrainingError: workers die again and again, or have no room for their batches.
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
    if words.endswith(_FULL):
        raise TrainingError(f"{told}: {_about_shared_memory()}. The same command continues")
    if deaths > _FORGIVEN:
        raise TrainingError(
            f"{told}, the {deaths}th within {_STEPS} steps; if memory is short, give fewer"
            " --data.workers. The same command continues from the last checkpoint"
        )
    console.warn(f"{told}; starting the workers again")


def _about_shared_memory() -> str:
    size = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else 0
    return (
        f"the shared memory {_SHARED_MEMORY} ({size / 1e6:,.0f} MB) is too small for its batches;"
        " give the container more (docker run --shm-size 16g, in Kubernetes a volume of medium"
        " Memory), or use --data.workers 0 with more --data.threads"
    )


def _close(batches: object) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
