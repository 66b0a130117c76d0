"""Running `benchmarks.gpu.flex` in processes of its own, and hearing from them in time."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from queue import Empty, Queue
from typing import Any

from benchmarks.gpu.flex import fields_of
from benchmarks.gpu.plan import MODES, Variant
from natjax.kernels.tuning.problems import Problem


class TorchWorker:
    """One process, which compiles its problems when it starts and measures them when asked to."""

    def __init__(self, variant: Variant, problems: Sequence[Problem], dtype: str) -> None:
        self._variant = variant
        self._problems = problems
        self._lines: Queue[str | None] = Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.flex"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # JAX is there for the shapes of problems; the GPU is PyTorch's.
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        fields = [fields_of(problem) for problem in problems]
        self._say(json.dumps({"variant": variant, "problems": fields, "dtype": dtype}))
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has compiled, within a time."""
        return self._line(seconds) == "ready"

    def measure(self, seconds: float) -> list[dict[str, Any]]:
        """Rows of all its problems, once it has compiled; it ends with them or with the time."""
        self._say("measure")
        rows = []
        while line := self._line(seconds):
            rows.append(json.loads(line))
        self.end()
        measured = {(row["problem"], row["mode"]) for row in rows}
        reason = "out of time, or it broke down"
        return rows + missing(self._variant, self._problems, reason, measured)

    def missing(self, reason: str) -> list[dict[str, Any]]:
        """Rows that say why none of its problems is measured."""
        return missing(self._variant, self._problems, reason)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._listener.join()
        # Closes the pipes, too.
        with contextlib.suppress(BrokenPipeError), self._process:
            pass

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        # If it has ended, whoever listens learns it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def _line(self, seconds: float) -> str | None:
        try:
            return self._lines.get(timeout=max(seconds, 0.1))
        except Empty:
            return None


def missing(
    variant: Variant,
    problems: Sequence[Problem],
    reason: str,
    measured: Collection[tuple[str, str]] = frozenset(),
) -> list[dict[str, Any]]:
    """Rows that say why there is no measurement."""
    return [
        {"problem": problem.name, "mode": mode, "variant": variant, "error": reason}
        for problem in problems
        for mode in MODES
        if (problem.name, mode) not in measured
    ]


def is_available() -> bool:
    """Whether PyTorch is there to import."""
    return importlib.util.find_spec("torch") is not None


def version() -> str:
    """Version of PyTorch, "none" where there is none."""
    return importlib.metadata.version("torch") if is_available() else "none"


def start(
    variants: Sequence[Variant], problems: Sequence[Problem], dtype: str, processes: int
) -> list[TorchWorker]:
    """Workers that share the problems of a variant, those that matter most first with each."""
    shares = [problems[i::processes] for i in range(processes)]
    return [TorchWorker(variant, share, dtype) for variant in variants for share in shares if share]
