"""Runs in processes of their own: killed, interrupted, out of disk, on virtual devices."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pico
from runs import final_state, metrics

SUPPORT = os.path.dirname(pico.__file__)


def command(run, data_dir, **settings) -> tuple[list[str], dict[str, str]]:
    words = [sys.executable, "-m", "pico", "train", "digits", *pico.flags(run, **settings)]
    path = os.pathsep.join([SUPPORT, *sys.path])
    return words, os.environ | {"PYTHONPATH": path, "NATJAX_DATA": str(data_dir)}


def start(run, data_dir, **settings) -> subprocess.Popen:
    words, env = command(run, data_dir, **settings)
    # Tests in the background may ignore Ctrl-C, and their children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def newest(run) -> int:
    """Step of the newest checkpoint, 0 without any."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_checkpoint(process, run) -> None:
    """Wait until there is a newer checkpoint, or the process has ended."""
    before = newest(run)
    while newest(run) == before and process.poll() is None:
        time.sleep(0.05)


def finish(run, data_dir, **settings) -> subprocess.CompletedProcess:
    words, env = command(run, data_dir, **settings)
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=300)


# Files may not grow beyond 8 KiB, which is where a disk would be full.
SMALL_DISK = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
    "runpy.run_module('pico', run_name='__main__', alter_sys=True)"
)

LONG = {"steps": 400, "checkpoint__every": 8, "eval_every": 80}


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path, data_dir):
    whole = finish(tmp_path / "whole", data_dir, **LONG)
    assert whole.returncode == 0, whole.stderr
    rng, run, kills = random.Random(0), tmp_path / "killed", 0
    while kills < 4:
        process = start(run, data_dir, **LONG)
        if kills:  # the first one comes during start-up
            wait_for_checkpoint(process, run)
        try:
            process.wait(rng.uniform(0, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    last = finish(run, data_dir, **LONG)
    assert last.returncode == 0, last.stderr
    assert kills >= 3
    assert metrics(run) == metrics(tmp_path / "whole")
    left, right = final_state(run), final_state(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_ctrl_c_says_how_to_continue(tmp_path, data_dir):
    process = start(tmp_path / "run", data_dir, steps=100000)
    while not (tmp_path / "run" / "checkpoints" / "8").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "interrupted; the same command continues" in error


def test_a_full_disk_ends_with_a_clear_error_and_no_half_checkpoint(tmp_path, data_dir):
    run = tmp_path / "run"
    words, env = command(run, data_dir, steps=16, eval_every=8)
    words[1:3] = ["-c", SMALL_DISK]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "cannot write a checkpoint" in done.stderr
    assert "full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(path.name.isdecimal() for path in (run / "checkpoints").iterdir())
    assert finish(run, data_dir, steps=16, eval_every=8).returncode == 0


def test_a_mesh_of_virtual_devices_is_made_on_request(tmp_path, data_dir):
    done = finish(tmp_path / "run", data_dir, mesh__data=4, mesh__fsdp=2, steps=8, eval_every=8)
    assert done.returncode == 0, done.stderr
    assert "8 x cpu (data 4, fsdp 2)" in done.stdout
    assert done.stderr == ""
