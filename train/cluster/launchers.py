"""What SLURM and Open MPI tell the processes that they start, by environment variables.

One table a launcher; nothing here asks JAX or the network. (Cloud TPUs and Kubernetes tell by other
means, which JAX knows: `natjax.train.cluster.processes`.) With JAX's own detection a missing
process would abort the others, Open MPI 5 would need mpi4py, and a process that shares its host
would always take the GPU of its local number, though it may see no other GPU than its own.
"""

import dataclasses
import re
from collections.abc import Mapping

# Ports above those that systems give to outgoing connections.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launched:
    """The place of one process among those that a launcher has started together.

    Attributes:
      launcher: Its name, for messages.
      job: Name of the job, the same in all of its processes and in no other job's.
      coordinator: HOST:PORT for process 0; None where the launcher does not tell.
      processes: How many processes there are.
      process: Which of them this is.
      local_processes: How many of them are on this host.
      local_process: Which of those this is.
    """

    launcher: str
    job: str
    coordinator: str | None
    processes: int
    process: int
    local_processes: int
    local_process: int


def launched(environment: Mapping[str, str]) -> Launched | None:
    """Return what a launcher has told this process; None where there is no launcher.

    Args:
      environment: Environment variables.
    """
    # mpirun starts its helpers by srun where it can, so within SLURM both have left variables.
    for needed, read in ((_OPEN_MPI, _open_mpi), (_SLURM, _slurm)):
        if all(name in environment for name in needed):
            return read(environment)
    return None


def own_gpus(place: Launched, environment: Mapping[str, str]) -> list[int] | None:
    """Return which of the visible GPUs are this process's own; None for all of them.

    A process takes the GPU of its number on the host, unless it is the only one there, or sees
    fewer GPUs than there are processes: then the launcher has dealt them out (as SLURM does for
    --gpus-per-task=1). JAX_LOCAL_DEVICE_IDS, which JAX reads, overrides this.

    Args:
      place: The place of this process.
      environment: Environment variables.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    dealt_out = visible is not None and len(visible.split(",")) < place.local_processes
    if place.local_processes == 1 or dealt_out or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return [place.local_process]


def is_kubernetes_job(environment: Mapping[str, str]) -> bool:
    """Return whether Kubernetes has started this process as one pod of an indexed job.

    Other pods are not told which of how many they are, and train alone.

    Args:
      environment: Environment variables.
    """
    return {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)


# Of a step, not of its allocation: SLURM_NTASKS and SLURM_PROCID are in the shells of salloc and
# sbatch too, which are one process, and in the shell of an interactive step, a step of one task.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
)


def _slurm(environment: Mapping[str, str]) -> Launched:
    job, step = environment["SLURM_JOB_ID"], environment["SLURM_STEP_ID"]
    node = int(environment["SLURM_NODEID"])
    # Jobs beside each other differ by little in their numbers, so steps are far apart.
    port = _port(int(job) + 1021 * int(step))
    return Launched(
        launcher="SLURM",
        job=f"SLURM {job}.{step}",
        coordinator=f"{_first_node(environment['SLURM_STEP_NODELIST'])}:{port}",
        processes=int(environment["SLURM_STEP_NUM_TASKS"]),
        process=int(environment["SLURM_PROCID"]),
        local_processes=_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node],
        local_process=int(environment["SLURM_LOCALID"]),
    )


def _first_node(nodes: str) -> str:
    """Return the first of nodes written as in ``"gpu[001-004,9],other"``."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]


def _tasks_per_node(text: str) -> list[int]:
    """Return the numbers of ``"2(x3),1"``: 2, 2, 2, 1."""
    tasks = []
    for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(repeats or 1)
    return tasks


_OPEN_MPI = (
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
)


def _open_mpi(environment: Mapping[str, str]) -> Launched:
    job, coordinator = _mpirun(environment)
    return Launched(
        launcher="Open MPI",
        job=f"Open MPI {job}",
        coordinator=coordinator,
        processes=int(environment["OMPI_COMM_WORLD_SIZE"]),
        process=int(environment["OMPI_COMM_WORLD_RANK"]),
        local_processes=int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]),
        local_process=int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
    )


def _mpirun(environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Return a name for the job, and an address on the host of mpirun, taken for process 0's.

    Up to version 4 mpirun's own address is given, with the job's number before it; since
    version 5 the name of the job, which has mpirun's host and process in it.
    """
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    if found := re.match(r"(\d+)\.\d+;tcp(?:://([^,:]+)|6://\[([^],]+))", uri):
        number, host, host6 = found.groups()
        # The lower 16 bits are 0 for all that mpirun itself starts.
        return number, f"{host or f'[{host6}]'}:{_port(int(number) >> 16)}"
    name = environment.get("PMIX_NAMESPACE", "")
    if found := re.match(r"prte\w*-(.+)-(\d+)@", name):
        return name, f"{found[1]}:{_port(int(found[2]))}"
    return name, None


def _port(number: int) -> int:
    return _FIRST_PORT + number % _PORTS
