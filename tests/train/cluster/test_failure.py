"""What one process of a job fails with ends the others, wherever they are."""

import os

import pytest
from jobs import Job, free_port

from natjax.train.checkpoint.checkpointer import list_steps

START = """
import os, signal, sys, tempfile, time
from pathlib import Path
from natjax.cli import main
from natjax.train.checkpoint import checkpointer
from natjax.train.engine import loop
from natjax.train.cluster import processes
from natjax.train.config.settings import CheckpointConfig, DistributedConfig
from natjax.train.cluster.failure import end_together
from natjax.train.errors import TrainingError, UserError

index, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
place = DistributedConfig(coordinator=f"127.0.0.1:{port}", processes=2, process=index)
"""

# The command line runs `body` instead of training.
RUN = """
def train(task, path, settings):
    processes.start(place)
    with end_together():
        body()

loop.train = train
sys.exit(main(["train", "digits"]))
"""


def run(body: str, tmp_path):
    """Run `body` in two processes; return how they ended."""
    port = str(free_port())
    words = [["-c", START + body + RUN, str(i), port, str(tmp_path)] for i in range(2)]
    with Job(words, os.environ) as job:
        return job.ended(timeout=120)  # without a note JAX waits for 60 s or more, and aborts


def natjax_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("natjax")]


ELSEWHERE = {
    "in no collective": "time.sleep(600)",
    "in a collective": "processes.wait('never')",
}


@pytest.mark.oldest
@pytest.mark.parametrize(
    "where", ["in no collective", pytest.param("in a collective", marks=pytest.mark.slow)]
)
def test_an_error_of_the_second_process_is_told_by_the_first_and_ends_it(tmp_path, where):
    body = f"""
def body():
    if index == 1:
        raise TrainingError("16 images in a row cannot be read")
    {ELSEWHERE[where]}
"""
    first, second = run(body, tmp_path)
    assert (first.code, second.code) == (1, 1), first.err + second.err
    assert natjax_lines(first.err) == ["natjax: process 1: 16 images in a row cannot be read"]
    assert natjax_lines(second.err) == []


@pytest.mark.slow
def test_a_fault_in_the_program_shows_where_it_was(tmp_path):
    body = """
def body():
    if index == 0:
        {}["a fault"]
    processes.wait("never")
"""
    first, second = run(body, tmp_path)
    assert (first.code, second.code) == (1, 1), first.err + second.err
    assert "in body\n" in first.err
    assert natjax_lines(first.err) == ["natjax: failed with KeyError: 'a fault'"]
    assert second.err.count("Traceback") == 0


@pytest.mark.slow
def test_ctrl_c_twice_in_one_process_ends_both(tmp_path):
    body = """
def body():
    if index == 0:
        signal.raise_signal(signal.SIGINT)
    time.sleep(600)
"""
    first, second = run(body, tmp_path)
    assert (first.code, second.code) == (130, 130), first.err + second.err
    assert natjax_lines(first.err + second.err) == [
        "natjax: interrupted; the same command continues from the last checkpoint"
    ]


def test_a_folder_that_only_the_first_process_cannot_write_is_told_at_the_start(tmp_path):
    body = """
def refuse(**_):
    raise OSError(errno.EROFS, "Read-only file system")

def body():
    if index == 0:
        tempfile.TemporaryFile = refuse
    checkpointer.CheckpointWriter(folder, CheckpointConfig())
"""
    first, second = run("import errno" + body, tmp_path)
    assert (first.code, second.code) == (2, 2), first.err + second.err
    (told,) = natjax_lines(first.err + second.err)
    assert "the folder cannot be written; there is none yet. Put that right" in told


SAVE = """
import jax, numpy as np, resource
from jax.sharding import Mesh, NamedSharding, PartitionSpec

def state(step):
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec())
    rng = np.random.default_rng(step)  # of many bytes, however they are compressed
    values = {"a": rng.normal(size=(200, 300)).astype(np.float32)}
    return jax.device_put({"params": values, "step": {"step": np.int32(step)}}, everywhere)

def body():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with checkpointer.CheckpointWriter(folder, CheckpointConfig()) as writer, end_together():
        writer.save(1, state(1), {}, 0.5)
        writer.wait()
        if index == FULL:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        for step in (2, 3):
            writer.save(step, state(step), {}, None)
        processes.wait("saved")
"""


@pytest.mark.parametrize("full", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_one_process_ends_both(tmp_path, full):
    first, second = run(f"FULL = {full}" + SAVE, tmp_path)
    assert (first.code, second.code) == (2, 2), first.err + second.err
    (told,) = natjax_lines(first.err + second.err)
    assert told.startswith("natjax: process 1: " if full else "natjax: cannot write a checkpoint")
    assert "the disk is full, or a quota is reached; the last whole one is of step 1" in told
    assert list_steps(tmp_path) == [1]
