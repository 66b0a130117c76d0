"""What a call takes: time, processor time, memory. Needs nothing but Linux with glibc."""

from __future__ import annotations

import ctypes
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, TypedDict

_PROCESS = pathlib.Path("/proc/self")


class Measured(TypedDict):
    """What a call took.

    Attributes:
      seconds: by the clock.
      cpu_seconds: of all threads of the process together.
      peak_bytes: most memory that the process has had in use meanwhile.
      extra_bytes: the same, above what was in use before.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    extra_bytes: int


def measured(call: Callable[[], Any]) -> Measured:
    """Call twice, and say what it took: memory the first time, time the second.

    What earlier calls freed is given back before the first, or it would count as in use. The second
    finds the memory that the first left, as calls in a loop do.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    call()
    peak = _resident("VmHWM")
    cpu, clock = time.process_time(), time.perf_counter()
    call()
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    return Measured(
        seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak, extra_bytes=peak - before
    )


def _resident(which: str) -> int:
    """Bytes of memory that the process has in use ("VmRSS"), or has had at most ("VmHWM")."""
    found = re.search(rf"{which}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    return 1024 * int(found.group(1)) if found else 0
