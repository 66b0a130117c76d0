"""Errors that the command line shows as one line, and the suggestions inside them."""

import difflib
import errno
import signal
from collections.abc import Iterable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_TEXTS = ("no space left", "disk quota", "file too large")


class UserError(ValueError):
    """Something the caller can put right; the message says how. Exit code 2."""


class TrainingError(RuntimeError):
    """Training went wrong by itself, such as a loss that is not finite. Exit code 1."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to stop and has saved everything. Exit code 128 + the signal's number.

    Attributes:
      signal: SIGTERM or SIGINT.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, all saved")
        self.signal = number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"``, or an empty string where nothing is near.

    Args:
      name: What was asked for.
      known: What exists.
    """
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def storage_problem(error: BaseException) -> str | None:
    """Say in words why storage refused to take data, or None where that is not the trouble.

    Libraries wrap the operating system's error in their own, so the chain of causes is searched,
    and their texts where the number is lost.

    Args:
      error: Any exception.
    """
    seen: BaseException | None = error
    known = set[int]()
    while seen is not None and id(seen) not in known:
        known.add(id(seen))  # errors that went through several threads may go round in a circle
        number = seen.errno if isinstance(seen, OSError) else None
        text = str(seen).lower()
        if number in _FULL or any(words in text for words in _FULL_TEXTS):
            return "the disk is full, or a quota is reached"
        if number in _REFUSED or "permission denied" in text or "read-only file system" in text:
            return "the folder cannot be written"
        seen = seen.__cause__ or seen.__context__
    return None


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line that tells of an error, and the exit code; None for a fault in the program.

    Args:
      error: Any exception.
    """
    from natjax.weights.untrusted import WeightsError  # with NumPy, which help does not wait for

    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command continues from the last checkpoint", 130
    if isinstance(error, TrainingError):
        return str(error), 1
    if isinstance(error, (UserError, WeightsError)):
        return str(error), 2
    reason = storage_problem(error)
    if reason is None:
        return None
    filename = getattr(error, "filename", None)
    place = f" ({filename})" if filename else ""
    return f"{reason}{place}; make room or choose another folder, then run it again", 2
