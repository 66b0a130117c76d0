"""What a call takes: time, processor time, memory. Needs nothing but Linux."""

from __future__ import annotations

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
    """Call, and say what it took."""
    (_PROCESS / "clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    cpu, clock = time.process_time(), time.perf_counter()
    call()
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    peak = _resident("VmHWM")
    return Measured(
        seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak, extra_bytes=peak - before
    )


def _resident(which: str) -> int:
    """Bytes of memory that the process has in use ("VmRSS"), or has had at most ("VmHWM")."""
    found = re.search(rf"{which}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    return 1024 * int(found.group(1)) if found else 0
