"""A process that fails ends the whole job: soon, with its exit code, and with one message.

Without this the others wait for it in the next collective, for minutes, and JAX then aborts them.
The one that fails leaves a note in the key-value store of JAX's coordination service, which every
process looks at from a thread of its own, since its main thread may be waiting where no exception
reaches. Process 0 says what has happened.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from natjax.train.cluster import processes
from natjax.train.cluster.jax_private import coordination_client
from natjax.train.errors import Stopped, explain

_NOTES, _SEEN = "natjax/failed", "natjax/all have seen it"
_LOOK_SECONDS = 0.5
# How long a process waits for the others to see a note; one of them may be dead.
_SEEN_SECONDS = 5
# The service is process 0's; without it JAX aborts the others before they end by themselves.
_LINGER_SECONDS = 1


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """End all processes of the job when this one leaves the context by an exception.

    Not by those that all processes have: `Stopped`, and what `processes.first` raises. With one
    process it does nothing. It may be nested: the inner one tells the others earlier, before what
    lies between the two is cleaned up, and the outer one looks for the notes of others.
    """
    if processes.count() == 1:
        yield
        return
    with _watched() as watch:
        try:
            yield
        except BaseException as error:
            if isinstance(error, (Stopped, SystemExit)) or processes.is_known(error):
                raise
            leave_note(error)
            watch.join(_SEEN_SECONDS + 2 * _LINGER_SECONDS)  # it ends this process
            raise


_watch: threading.Thread | None = None


@contextlib.contextmanager
def _watched() -> Iterator[threading.Thread]:
    """Look for notes while entered; yield the thread that does."""
    global _watch
    if _watch is not None:
        yield _watch
        return
    over = threading.Event()
    _watch = threading.Thread(target=_look, args=(coordination_client(), over), daemon=True)
    _watch.start()
    try:
        yield _watch
    finally:
        # It must not hold the service when JAX leaves it.
        over.set()
        _watch.join()
        _watch = None


def leave_note(error: BaseException) -> None:
    """End all processes of the job, from any thread while one is in `end_together`.

    Args:
      error: Why; of several notes, one counts.
    """
    explained = explain(error)
    if explained is None:
        traceback.print_exception(error)
        line = (str(error).splitlines() or [""])[0][:200]
        explained = f"failed with {type(error).__name__}: {line}", 1
    note = {"text": processes.label() + explained[0], "code": explained[1]}
    # Where the service is gone, JAX aborts the others; a process leaves one note.
    with contextlib.suppress(Exception):
        coordination_client().key_value_set(f"{_NOTES}/{processes.index()}", json.dumps(note))


def _look(service: Any, over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        try:
            notes = service.key_value_dir_get(_NOTES)
        except Exception:
            return  # the service is gone
        if notes:
            _end(service, json.loads(min(notes)[1]))


def _end(service: Any, note: dict[str, Any]) -> None:
    with contextlib.suppress(Exception):
        service.wait_at_barrier(_SEEN, 1000 * _SEEN_SECONDS)
    sys.stdout.flush()
    if processes.index() == 0:
        sys.stderr.write(f"natjax: {note['text']}\n")
        sys.stderr.flush()
        time.sleep(_LINGER_SECONDS)
    os._exit(note["code"])
