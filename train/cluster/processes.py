"""Several processes that train together, mostly one a host: how they find each other and agree.

Process 0 alone prints and writes; what it decides or meets on the way, the others learn from it.
With one process every function here is free of cost and of JAX's distributed runtime.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from natjax.train import console
from natjax.train.cluster.launchers import Launched, is_kubernetes_job, launched, own_gpus
from natjax.train.cluster.rendezvous import wait_for_all
from natjax.train.config.settings import DistributedConfig
from natjax.train.errors import UserError, explain

_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
_SHUTDOWN_SECONDS = 60
_BLOCK = 1024

_index, _count = 0, 1
_known: BaseException | None = None


def index() -> int:
    """Return which process this is."""
    return _index


def count() -> int:
    """Return how many processes there are."""
    return _count


@dataclasses.dataclass(frozen=True)
class Host:
    """Which rows of every global batch a process makes: the `index`-th of `count` equal parts.

    Parts in one piece, so that the global array has the same rows in the same order for any number
    of hosts: what a step draws for a row, and which row is mixed with which, stays the same.
    """

    index: int = 0
    count: int = 1


def this_host() -> Host:
    """Return which rows this process makes."""
    return Host(_index, _count)


def label() -> str:
    """Return ``"process 3: "`` for messages of any process but the first, else nothing."""
    return f"process {_index}: " if _index else ""


def start(config: DistributedConfig) -> None:
    """Join the other processes. Call it before JAX is first used; later calls do nothing.

    What the configuration leaves open comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, and then from SLURM or Open MPI, if one of them has started this process. Where
    nothing is given, JAX finds the others of a Cloud TPU or of an indexed job of Kubernetes, and
    elsewhere this process is alone. One process is alone wherever it is.

    Raises:
      UserError: the settings are incomplete or wrong, or the others did not come in time.
    """
    if _count > 1:
        return
    by_hand = _given(config, os.environ, "process") is not None
    launch = None if by_hand else launched(os.environ)
    place = settings(config, os.environ, launch)
    if place is not None:
        _join(place, launch, float(config.timeout))
    elif launch is not None or _given(config, os.environ, "processes") is not None:
        return
    elif is_kubernetes_job(os.environ):
        _join_kubernetes(config.timeout)
    elif _has_tpu():
        _join_detected(config.timeout)


def settings(
    config: DistributedConfig, environment: Mapping[str, str], launch: Launched | None = None
) -> tuple[str, int, int] | None:
    """Return coordinator, number of processes and index of this one; None where nothing is said.

    Args:
      config: What the command line says.
      environment: Environment variables, for what it leaves open.
      launch: What a launcher has told, for what these leave open.

    Raises:
      UserError: some of them are missing or wrong.
    """
    if launch is not None and launch.processes == 1:
        return None
    values = {name: _given(config, environment, name) for name in _VARIABLES}
    values = {
        name: getattr(launch, name, None) if value is None else value
        for name, value in values.items()
    }
    if values["processes"] is not None and _integer("processes", values["processes"]) == 1:
        return None
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise UserError(_incomplete(missing[0], launch))
    processes, process = (_integer(name, values[name]) for name in ("processes", "process"))
    if processes < 1:
        raise UserError(f"distributed.processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        raise UserError(
            f"distributed.process must be in [0, {processes}), as processes count from 0,"
            f" got {process}"
        )
    host, _, port = str(values["coordinator"]).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"distributed.coordinator must be HOST:PORT of process 0, got {values['coordinator']!r}"
        )
    return str(values["coordinator"]), processes, process


def _given(config: DistributedConfig, environment: Mapping[str, str], name: str) -> Any:
    value = getattr(config, name)
    return environment.get(_VARIABLES[name]) if value is None else value


def _incomplete(name: str, launch: Launched | None) -> str:
    if launch is not None:
        return (
            f"{launch.launcher} does not tell where process 0 is; give"
            f" --distributed.{name} HOST:PORT"
        )
    return (
        f"distributed.{name} is missing: several processes need all of"
        " --distributed.coordinator HOST:PORT --distributed.processes N --distributed.process I"
    )


def _integer(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"distributed.{name} must be an integer, got {value!r}") from error


def _has_tpu() -> bool:
    import importlib.util

    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _join(place: tuple[str, int, int], launch: Launched | None, timeout: float) -> None:
    address, processes, process = place
    if processes == 1:
        return
    wait_for_all(address, processes, process, timeout, launch.job if launch else "")
    import jax

    try:
        jax.distributed.initialize(
            address,
            processes,
            process,
            local_device_ids=own_gpus(launch, os.environ) if launch else None,
            cluster_detection_method="deactivate",
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    _remember(process, processes)


def _join_kubernetes(timeout: int) -> None:
    import importlib.util

    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "this is a pod of an indexed Kubernetes job, whose pods find each other by the package"
            " kubernetes, which is missing: pip install 'jax[k8s]'. Or give"
            " --distributed.coordinator HOST:PORT --distributed.processes N"
            " --distributed.process I, or --distributed.processes 1 where each pod trains alone"
        )
    try:
        _join_detected(timeout)
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot join the other pods of the Kubernetes job: {error}") from error


def _join_detected(timeout: int) -> None:
    """Join whom JAX finds."""
    import jax

    try:
        jax.distributed.initialize(
            initialization_timeout=timeout, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except ValueError:
        return  # JAX knows of no cluster here: a TPU by itself
    _remember(jax.process_index(), jax.process_count())


def _remember(process: int, processes: int) -> None:
    global _index, _count
    _index, _count = process, processes
    console.set_process(process, processes)


def first[Result](function: Callable[[], Result]) -> Result:
    """Call a function in process 0 only, and return in every process what it returned.

    Where it raises, process 0 raises, and the others end without a word.

    Args:
      function: Returns JSON values.

    Raises:
      SystemExit: in the other processes, when process 0 has raised.
    """
    if _count == 1:
        return function()
    failure, answer = None, None
    if _index == 0:
        try:
            answer = {"result": function()}
        except Exception as error:
            explained = explain(error)
            failure, answer = error, {"exit": explained[1] if explained else 1}
    answer = _broadcast(answer)
    if failure is not None:
        _know(failure)
        raise failure
    if "exit" in answer:
        raise SystemExit(answer["exit"])
    return answer["result"]


def _know(error: BaseException) -> None:
    global _known
    _known = error


def is_known(error: BaseException) -> bool:
    """Whether the other processes end by themselves, as `first` has told them of this error.

    Args:
      error: What this process ends with.
    """
    return error is _known


def any_problem(problem: str | None) -> str | None:
    """Return the problem that some process has, the same text in all; None where none has any.

    Args:
      problem: What is wrong in this process, if anything.
    """
    if _count == 1:
        return problem
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.zeros(_BLOCK, np.uint8)
    text = (problem or "").encode()[:_BLOCK]
    own[: len(text)] = np.frombuffer(text, np.uint8)
    for process, row in enumerate(multihost_utils.process_allgather(own)):
        if text := bytes(row).rstrip(b"\0").decode(errors="replace"):
            return f"process {process}: {text}"
    return None


def wait(name: str) -> None:
    """Wait until all processes are here.

    Args:
      name: Of this place in the program, for JAX's error should processes be at different ones.
    """
    if _count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _broadcast(value: Any) -> Any:
    """Return what process 0 has."""
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode() if _index == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Whole blocks, so that few shapes are compiled.
    block = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
    block[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(block)[:size]))
