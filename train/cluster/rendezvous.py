"""Processes find each other before JAX's runtime starts, which would abort where one is missing.

Process 0 listens at the coordinator's address until all others have come, then tells them to go on
(or whom it misses) and leaves the port to JAX. Nothing that comes over a connection is trusted:
one short line is read from each.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Collection, Iterator

from natjax.train.errors import UserError

_LINE = 4096
_RETRY_SECONDS = 0.2
# Strangers that connect and say nothing must not hold up the others.
_READ_SECONDS = 5.0
# How much longer than process 0 the others wait for its answer.
_EXTRA_SECONDS = 10.0
_SHOWN = 8


def wait_for_all(address: str, processes: int, process: int, timeout: float, job: str = "") -> None:
    """Return in all processes once all are here.

    Args:
      address: HOST:PORT of process 0.
      processes: How many processes there are.
      process: Which one this is.
      timeout: Seconds to wait.
      job: What tells this run from others, where that is known. Ports that launchers' variables
        give may be those of another run.

    Raises:
      UserError: somebody is missing (process 0 tells who), process 0 cannot be reached, the port is
        taken, or the processes do not agree on their number and places.
    """
    host, _, port = address.rpartition(":")
    group = _Group(processes, job, timeout, time.monotonic() + timeout)
    if process == 0:
        _accept_all(int(port), group)
    else:
        _join(host.strip("[]"), int(port), process, group)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Who is expected: how many of which job, within how many seconds, and until when that is."""

    processes: int
    job: str
    timeout: float
    end: float


def _accept_all(port: int, group: _Group) -> None:
    with contextlib.ExitStack() as stack, _listening(port) as server:
        here: dict[int, socket.socket] = {}
        problem = None
        while problem is None and len(here) < group.processes - 1:
            problem = _accept_one(server, stack, here, group)
        for connection in here.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
    if problem is not None:
        raise UserError(problem)


def _accept_one(
    server: socket.socket,
    stack: contextlib.ExitStack,
    here: dict[int, socket.socket],
    group: _Group,
) -> str | None:
    """Accept the next process; return what is wrong, if anything."""
    server.settimeout(max(0.01, group.end - time.monotonic()))
    try:
        connection = stack.enter_context(server.accept()[0])
    except TimeoutError:
        return _missing(here, group)
    said = _read(connection, _READ_SECONDS)
    process, total = said.get("process"), said.get("processes")
    if not isinstance(process, int) or not isinstance(total, int) or said.get("job") != group.job:
        return None  # no natjax, or another run's, which has no port of its own
    if total != group.processes or not 0 < process < total:
        return (
            f"distributed.processes is {group.processes} in process 0 and {total} in process"
            f" {process}; it must be the same in all"
        )
    if process in here:
        return f"two processes were started as distributed.process {process}; each needs its own"
    here[process] = connection
    return None


def _missing(here: Collection[int], group: _Group) -> str:
    missing = [process for process in range(1, group.processes) if process not in here]
    names = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
    return (
        f"{len(missing)} of {group.processes} processes did not come within {group.timeout:g} s:"
        f" missing distributed.process {names}. Start them with the same command, and check that"
        " their hosts reach this one; --distributed.timeout waits longer"
    )


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"process 0 cannot listen on port {port} ({reason}); is another run using it?"
            " Choose another port in --distributed.coordinator"
        ) from error
    with server:
        yield server


def _join(host: str, port: int, process: int, group: _Group) -> None:
    with _connected(host, port, process, group) as connection:
        greeting = {"process": process, "processes": group.processes, "job": group.job}
        said = {}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(greeting).encode() + b"\n")
            said = _read(connection, max(0.0, group.end - time.monotonic()) + _EXTRA_SECONDS)
    if "problem" not in said:
        raise UserError(
            f"process {process} reached {host}:{port}, but process 0 did not answer or broke off;"
            " see its messages, and check that no other program listens there"
        )
    if said["problem"] is not None:
        raise UserError(str(said["problem"]))


@contextlib.contextmanager
def _connected(host: str, port: int, process: int, group: _Group) -> Iterator[socket.socket]:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_READ_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > group.end:
                reason = error.strerror or error
                raise UserError(
                    f"process {process} cannot reach process 0 at {host}:{port} within"
                    f" {group.timeout:g} s ({reason}). Check that process 0 is running, that"
                    " --distributed.coordinator names its host, and that no firewall is in between"
                ) from error
            time.sleep(_RETRY_SECONDS)
    with connection:
        yield connection


def _read(connection: socket.socket, seconds: float) -> dict[str, object]:
    """Return the one line that the other side says; nothing where it is not as it should be."""
    end, text = time.monotonic() + seconds, b""
    try:
        while not text.endswith(b"\n") and len(text) < _LINE:
            connection.settimeout(max(0.01, end - time.monotonic()))
            part = connection.recv(_LINE)
            if not part:
                break
            text += part
        said = json.loads(text)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
