"""What can only be shown with processes of their own: kills, full disks, virtual devices."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pico
import pytest
from runs import final_state, metrics

from natjax.cli import main
from natjax.train.checkpoint.checkpointer import list_steps
from natjax.train.cluster.processes import Host
from natjax.train.data.pipeline import read
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.tasks.classification.examples import train_images

SUPPORT = os.path.dirname(pico.__file__)


@pytest.fixture
def environment(data_dir, compilation_cache) -> dict[str, str]:
    """Variables of processes that find what this one has, and compile as it does, to the bit."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([SUPPORT, *sys.path]),
        "NATJAX_DATA": str(data_dir),
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PICO_PAUSE": "0.04",
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }


def start(run, environment, **settings) -> subprocess.Popen:
    words = [sys.executable, "-m", "pico", "train", "digits", *pico.flags(run, **settings)]
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def newest(run) -> int:
    """Step of the newest checkpoint, 0 without any."""
    return max(list_steps(run / "checkpoints"), default=0)


def kill_at_random(run, environment, rng: random.Random, **settings) -> bool:
    """Go on with a run and kill it at some moment after its next checkpoint, unless it ends."""
    before = newest(run)
    process = start(run, environment, **settings)
    while newest(run) == before and process.poll() is None:
        time.sleep(0.02)
    try:
        process.wait(rng.uniform(0, 0.2))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode in {0, -signal.SIGKILL}, error
    return process.returncode != 0


def check_kills(tmp_path, environment, kills: int, **settings) -> None:
    """Compare a run that is killed and then ended here with one that is made here."""
    whole, run, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    assert main(["train", "digits", *pico.flags(whole, **settings)]) == 0
    for _ in range(kills):
        assert kill_at_random(run, environment, rng, **settings), "it ended before it was killed"
    assert main(["train", "digits", *pico.flags(run, **settings)]) == 0
    assert metrics(run) == metrics(whole)
    left, right = final_state(run), final_state(whole)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.usefixtures("no_pictures")
def test_killed_twice_it_ends_as_if_it_had_not_been(tmp_path, environment):
    # Of as many steps as other tests, whose compiled programs it then finds.
    check_kills(tmp_path, environment, 2, checkpoint__every=4, eval_every=24)


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_if_it_had_not_been(tmp_path, environment):
    check_kills(tmp_path, environment, 10, steps=400, checkpoint__every=4, eval_every=80)


@pytest.mark.usefixtures("no_pictures")
def test_a_full_disk_ends_with_a_clear_error_and_no_half_checkpoint(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    settings = pico.flags(run)
    # Files may not grow beyond 8 KiB, which is where the disk would be full.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # only read
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        assert main(["train", "digits", *settings]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    error = capsys.readouterr().err
    assert "cannot write a checkpoint" in error
    assert "full" in error
    assert not list_steps(run / "checkpoints")
    assert main(["train", "digits", *settings]) == 0


def test_virtual_devices_are_made_on_request(environment):
    code = (
        "from natjax.train.config.settings import MeshConfig\n"
        "from natjax.train.engine.sharding import make_mesh, request_devices\n"
        "mesh = MeshConfig(data=4, fsdp=2)\n"
        "request_devices(mesh)\n"
        "print(dict(make_mesh(mesh).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'data': 4, 'fsdp': 2}\n"
    assert done.stderr == ""


def test_a_killed_data_worker_is_replaced_and_no_batch_is_lost(digits, capsys):
    spec, records, _ = digits
    data = ImagesConfig(name="digits", threads=1, workers=1)
    made = train_images(records, spec, data, AugmentConfig(), seed=0, batch_size=8, host=Host())
    batches = read(made, data, 3)
    try:
        for step in range(3, 12):
            batch = next(batches)
            np.testing.assert_array_equal(batch["image"], made[step]["image"])
            if step == 4:
                (worker,) = children()
                os.kill(worker, signal.SIGKILL)
    finally:
        batches.close()
    assert "a data worker process was killed (with exit code -9)" in capsys.readouterr().err


def children() -> list[int]:
    """Process numbers of the workers of this process."""
    import multiprocessing

    return [process.pid for process in multiprocessing.active_children() if process.pid]


HOLDER = """
import sys
from natjax.train.tasks.classification.config import AugmentConfig, ImagesConfig
from natjax.train.cluster.processes import Host
from natjax.train.data.pipeline import read
from natjax.train.tasks.classification.examples import train_images
from natjax.train.data.datasets import open_dataset, open_split
from natjax.train.tasks.classification.datasets.registry import get_spec

if __name__ == "__main__":
    data = ImagesConfig(name="digits", threads=1, workers=1)
    spec = get_spec(data)
    records = open_split(open_dataset(spec, data), spec.train_split)
    made = train_images(records, spec, data, AugmentConfig(), seed=0, batch_size=8, host=Host())
    batches = read(made, data, 0)
    held = [next(batches) for _ in range(3)]
    print("ready", flush=True)
    sys.stdin.readline()
    batches.close()
"""


@pytest.fixture
def holder(tmp_path, environment):
    """A process that has batches of a data worker in its hands when it ends, and their number."""
    (tmp_path / "holder.py").write_text(HOLDER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "holder.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_no_shared_memory_is_left_where_batches_are_held_to_the_end(holder):
    assert shared_memory(holder.pid)
    assert holder.communicate("\n", timeout=60) == ("", "")
    assert holder.returncode == 0


def test_data_workers_and_their_memory_end_with_a_run_that_is_killed(holder):
    names = shared_memory(holder.pid)
    assert names
    holder.kill()
    # The pipes end when the last process that holds them does: Python's, which frees the memory.
    assert holder.communicate(timeout=60)[0] == ""
    assert not [name for name in names if os.path.exists(name)]


def shared_memory(pid: int) -> set[str]:
    """Files of shared memory that a process has open; waits until a worker has sent some."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with open(f"/proc/{pid}/maps") as maps:
            if names := {line.split()[-1] for line in maps if "/dev/shm/psm_" in line}:
                return names
        time.sleep(0.02)
    return set()
