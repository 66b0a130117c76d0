"""All that is printed, and only by the first process of a job."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

_index, _count = 0, 1


def set_process(index: int, count: int) -> None:
    """Say which process of a job this is; all but the first are silent.

    Args:
      index: Counted from 0.
      count: How many there are.
    """
    global _index, _count
    _index, _count = index, count


def prints() -> bool:
    """Whether this process prints."""
    return _index == 0


@functools.cache
def _console(error: bool) -> Any:
    from rich.console import Console  # here, as help texts do without

    return Console(stderr=error, highlight=False, soft_wrap=True)


def console() -> Any:
    """Return Rich's console that writes to standard output."""
    return _console(False)


def say(what: Any) -> None:
    """Print a line, or a table, to standard output. Square brackets are not markup."""
    if prints():
        _console(False).print(what, markup=False)


def warn(text: str) -> None:
    """Print a line to standard error."""
    if prints():
        _console(True).print(f"natjax: {text}", markup=False)


def notice(text: str) -> None:
    """Print a line to standard error from within a signal handler, past all buffers."""
    if prints():
        os.write(2, f"natjax: {text}\n".encode())


def is_terminal() -> bool:
    """Whether someone watches: standard output is a terminal, and this the only process.

    What several processes write goes through their launcher, and a bar would fill its log: mpirun
    gives each a terminal of its own, wherever the output ends.
    """
    return _count == 1 and sys.stdout.isatty()


def quiet_libraries() -> None:
    """Silence TFDS, Grain and Orbax, which report through absl; their errors are raised as well."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something lasts: a spinner on a terminal, a plain line elsewhere."""
    if is_terminal():
        with _console(False).status(text):
            yield
    else:
        say(text)
        yield
