"""Several processes on one CPU that belong together."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Job:
    """Processes of Python; a context manager that leaves none behind.

    Args of the constructor: Python's arguments of each process, and the environment.
    """

    def __init__(self, arguments: Sequence[Sequence[str]], environment: Mapping[str, str]):
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        self.processes = [
            subprocess.Popen(
                [sys.executable, *words],
                env={**environment, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for words in arguments
        ]

    def ended(self, timeout: float = 240) -> list[Ended]:
        """Wait until all have ended."""
        said = [process.communicate(timeout=timeout) for process in self.processes]
        return [
            Ended(process.returncode, *texts)
            for process, texts in zip(self.processes, said, strict=True)
        ]

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            with process:  # closes its pipes and waits for it
                pass
