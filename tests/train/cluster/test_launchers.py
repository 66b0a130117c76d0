"""The variables are as the launchers themselves have set them, versions beside, but for names."""

import dataclasses
import importlib.machinery
import os
import subprocess
import sys
import types

import jax
import pytest

from natjax.train.cluster import processes
from natjax.train.cluster.launchers import launched, own_gpus
from natjax.train.config.settings import DistributedConfig
from natjax.train.errors import UserError

# SLURM 22.05: `srun --nodes=2 --ntasks-per-node=2`, the last task.
STEP = {
    "SLURM_JOB_ID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
# `srun --ntasks=1` in the same allocation.
ONE_TASK = STEP | {
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
# `salloc --ntasks=4` with LaunchParameters=use_interactive_step: a shell that is a step of its own.
INTERACTIVE = ONE_TASK | {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4"}
# The script of `sbatch --nodes=2 --ntasks-per-node=2`, outside of srun.
BATCH = {
    "SLURM_JOB_ID": "3",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
# Open MPI 4.1.4: `mpirun -n 2`, the second process.
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1143537664.0;tcp://192.0.2.2:46243;tcp6://[2001:db8::2]:52745",
}
# The same with Open MPI 5.0.11.
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI_4.items() if "hnp" not in name} | {
    "OMPI_VERSION": "5.0.11",
    "PMIX_NAMESPACE": "prterun-host-7-20641@1",
    "PMIX_SERVER_URI41": "prterun-host-7-20641@0.0;tcp4://127.0.0.1:43185",
}
# Open MPI 4.1.4: `mpirun -n 4` in the script BATCH; mpirun has started its helpers by srun.
OPEN_MPI_IN_SLURM = (
    STEP
    | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    | OPEN_MPI_4
    | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
)


@pytest.mark.parametrize(
    ("environment", "coordinator", "place", "local"),
    [
        (STEP, "n1:61443", (4, 3), (2, 1)),
        (ONE_TASK, None, (1, 0), (1, 0)),
        (INTERACTIVE, None, (1, 0), (1, 0)),
        (OPEN_MPI_4, "192.0.2.2:62505", (2, 1), (2, 1)),
        (OPEN_MPI_5, "host-7:61601", (2, 1), (2, 1)),
        (OPEN_MPI_IN_SLURM, "192.0.2.2:62505", (4, 2), (2, 0)),
    ],
)
def test_launchers_tell(environment, coordinator, place, local):
    found = launched(environment)
    assert found is not None
    assert (found.processes, found.process) == place
    assert (found.local_processes, found.local_process) == local
    if coordinator is not None:
        assert found.coordinator == coordinator


@pytest.mark.parametrize("environment", [{}, BATCH])
def test_a_process_that_no_launcher_started(environment):
    assert launched(environment) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,other", "node001"),
        ("node[001-015],other", "node001"),
        ("node[003,007-015]", "node003"),
        ("rack[2-3]node[4-5]", "rack2node4"),
        ("a-b[09-10]", "a-b09"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    found = launched(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert found is not None
    assert found.coordinator == f"{first}:61443"


def test_tasks_on_this_node():
    step = STEP | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_NODEID": "2"}
    found = launched(step)
    assert found is not None
    assert found.local_processes == 1


def test_steps_and_jobs_have_ports_of_their_own():
    places = [
        launched(STEP | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step})
        for job in ("3", "4", "5")
        for step in ("0", "1", "2")
    ]
    assert len({place and place.coordinator for place in places}) == 9
    assert len({place and place.job for place in places}) == 9


@pytest.mark.parametrize(
    ("uri", "coordinator"),
    [
        ("65536.0;tcp6://[2001:db8::2,2001:db8::3]:52745", "[2001:db8::2]:61441"),
        ("65536.0;tcp://192.0.2.2,198.51.100.2:46243", "192.0.2.2:61441"),
        ("65536.0;usock", None),
    ],
)
def test_addresses_of_mpirun(uri, coordinator):
    found = launched(OPEN_MPI_4 | {"OMPI_MCA_orte_hnp_uri": uri})
    assert found is not None
    assert found.coordinator == coordinator


@pytest.mark.parametrize(
    ("tasks", "environment", "expected"),
    [
        (1, {}, None),  # one task a node takes all
        (4, {}, [1]),
        (4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [1]),
        (4, {"CUDA_VISIBLE_DEVICES": "0"}, None),  # --gpus-per-task=1
        (4, {"JAX_LOCAL_DEVICE_IDS": "2,3"}, None),
    ],
)
def test_which_gpus_are_a_process_s_own(tasks, environment, expected):
    found = launched(STEP)
    assert found is not None
    local = dataclasses.replace(found, local_processes=tasks, local_process=min(1, tasks - 1))
    assert own_gpus(local, environment) == expected


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        (OPEN_MPI_4, {}, ("192.0.2.2:62505", 2, 1, [1], "Open MPI 1143537664")),
        (OPEN_MPI_4, {"coordinator": "a:1"}, ("a:1", 2, 1, [1], "Open MPI 1143537664")),
        # By hand, whatever the launcher says: all GPUs, and one name for the job everywhere.
        (STEP, {"coordinator": "a:1", "processes": 2, "process": 1}, ("a:1", 2, 1, None, "")),
        (INTERACTIVE, {}, None),
        (BATCH, {}, None),
    ],
)
def test_what_jax_is_started_with(monkeypatch, environment, given, expected):
    calls = []
    monkeypatch.setattr(processes, "_remember", lambda *_: None)
    monkeypatch.setattr(processes, "_has_tpu", lambda: False)
    monkeypatch.setattr(processes, "wait_for_all", lambda *args: calls.append(args))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **o: calls.append((args, o)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start(DistributedConfig(**given))
    if expected is None:
        assert calls == []
        return
    (address, count, process, timeout, job), (place, options) = calls
    assert (address, count, process) == place == expected[:3]
    assert (options["local_device_ids"], job) == expected[3:]
    assert (options["cluster_detection_method"], timeout) == ("deactivate", 300.0)


POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
OF_AN_INDEXED_JOB = POD | {"JOB_COMPLETION_INDEX": "1"}


@pytest.fixture
def start(monkeypatch):
    """Start a process in an environment; the calls of `jax.distributed.initialize`."""
    calls = []
    monkeypatch.setattr(processes, "_remember", lambda *_: None)
    monkeypatch.setattr(processes, "_has_tpu", lambda: False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **o: calls.append((args, o)))

    def run(environment, **given):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        processes.start(DistributedConfig(**given))
        return calls

    return run


@pytest.fixture
def kubernetes(monkeypatch):
    """The package of that name, of which only that it is there counts."""
    module = types.ModuleType("kubernetes")
    module.__spec__ = importlib.machinery.ModuleSpec("kubernetes", None)
    monkeypatch.setitem(sys.modules, "kubernetes", module)


@pytest.mark.usefixtures("kubernetes")
def test_pods_of_an_indexed_job_are_joined_by_jax(start):
    (((), options),) = start(OF_AN_INDEXED_JOB, timeout=7)
    assert options["initialization_timeout"] == 7
    assert "cluster_detection_method" not in options


@pytest.mark.usefixtures("kubernetes")
@pytest.mark.parametrize(
    ("environment", "given"),
    [(POD, {}), (OF_AN_INDEXED_JOB, {"processes": 1}), (OF_AN_INDEXED_JOB | ONE_TASK, {})],
)
def test_pods_that_train_alone(start, environment, given):
    assert start(environment, **given) == []


@pytest.mark.oldest
def test_jax_finds_kubernetes_by_the_same_variable():
    """Without the package JAX only warns, and the pod would believe to be alone."""
    code = "import sys; sys.modules['kubernetes'] = None; import jax; jax.distributed.initialize()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KUBERNETES_SERVICE_HOST": POD["KUBERNETES_SERVICE_HOST"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Kubernetes environment detected, but the `kubernetes` package" in done.stderr
    assert "ValueError: coordinator_address should be defined" in done.stderr


def test_a_pod_without_the_package_says_what_to_install(start, monkeypatch):
    monkeypatch.delitem(sys.modules, "kubernetes", raising=False)
    with pytest.raises(UserError, match=r"pip install 'jax\[k8s\]'.*--distributed.processes 1"):
        start(OF_AN_INDEXED_JOB)


@pytest.mark.usefixtures("kubernetes")
def test_what_kubernetes_lacks_is_told(start, monkeypatch):
    def refuse(**_):
        raise RuntimeError("Pods within a job need a headless service")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"other pods of the Kubernetes job: Pods within a job"):
        start(OF_AN_INDEXED_JOB)
