import dataclasses
import os
import re
import signal
import socket
import threading
import time

import jax
import numpy as np
import pico
import pytest
import two_processes
from jobs import Ended, Job, free_port
from runs import final_state, metrics

from natjax.cli import main
from natjax.train.checkpoint.checkpointer import list_steps
from natjax.train.cluster import processes
from natjax.train.cluster.launchers import Launched
from natjax.train.cluster.rendezvous import wait_for_all
from natjax.train.config.settings import DistributedConfig
from natjax.train.errors import UserError


@pytest.fixture
def address():
    """An address that nobody listens at."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_dir):
    """What `two_processes` left: the run folder and what each process printed."""
    run = tmp_path_factory.mktemp("pair") / "run"
    port = str(free_port())
    words = [["-m", "two_processes", str(index), "2", port, str(run)] for index in range(2)]
    with Job(words, os.environ | {"NATJAX_DATA": str(data_dir)}) as job:
        ended = job.ended()
    assert [one.code for one in ended] == [0, 0], ended
    return run, [(one.out, one.err) for one in ended]


@pytest.mark.usefixtures("no_pictures")
def test_two_processes_equal_one(pair, tmp_path, data_dir):
    run, _ = pair
    flags = pico.flags(tmp_path / "one", **two_processes.SETTINGS)
    assert main(["train", "digits", "--data.prepared-dir", str(data_dir), *flags]) == 0
    left, right = metrics(run), metrics(tmp_path / "one")
    assert [line["step"] for line in left] == [4, 8, 12, 12, 12]
    for two, one in zip(left, right, strict=True):
        words = {name for name, value in one.items() if isinstance(value, str)}
        assert {name: two[name] for name in words} == {name: one[name] for name in words}
        numbers = one.keys() - words
        expected = {name: one[name] for name in numbers}
        assert {name: two[name] for name in numbers} == pytest.approx(expected, rel=1e-5)
    assert all(line["images"] == 360 for line in left if line["kind"] == "eval")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        without_key_biases(final_state(run)),
        without_key_biases(final_state(tmp_path / "one")),
    )


class Told:
    """Two processes of a run that waits before every step; some of them are told to stop."""

    def __init__(self, run, cache, data_dir):
        port = str(free_port())
        where = {"distributed__coordinator": f"127.0.0.1:{port}", "distributed__processes": 2}
        flags = [
            pico.flags(run, **two_processes.SETTINGS, **where, distributed__process=index)
            for index in range(2)
        ]
        environment = os.environ | {
            "NATJAX_DATA": str(data_dir),
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PICO_PAUSE": "0.6",
        }
        self._job = Job([["-m", "pico", "train", "digits", *words] for words in flags], environment)

    def stop(self, step: int, process: int, number: int) -> list[Ended]:
        """Send one process a signal after the line of `step`, and wait for both."""
        with self._job as job:
            for line in job.processes[0].stdout:
                if line.startswith(f"step {step:>6}/"):
                    break
            job.processes[process].send_signal(number)
            return job.ended()

    def end(self) -> list[Ended]:
        """Wait for both."""
        with self._job as job:
            return job.ended()


# After the line of which step which process is told what, and with which codes both end.
PREEMPTED = (4, 1, signal.SIGTERM, [143, 143])
CTRL_C = (8, 0, signal.SIGINT, [130, 143])


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([PREEMPTED], id="SIGTERM"),
        pytest.param([PREEMPTED, CTRL_C], marks=pytest.mark.slow, id="SIGTERM, then Ctrl-C"),
    ],
)
def test_one_process_told_to_stop_stops_both_with_all_saved(pair, tmp_path, data_dir, stops):
    whole, _ = pair
    run, cache = tmp_path / "run", f"{whole}-cache"
    steps = [0]
    for step, process, number, codes in stops:
        ended = Told(run, cache, data_dir).stop(step, process, number)
        assert [one.code for one in ended] == codes, ended
        after = {re.search(r"after step (\d+), all saved; the same", one.err)[1] for one in ended}
        assert len(after) == 1, ended
        steps.append(int(after.pop()))
        assert steps[-2] < steps[-1] < 12
        assert list_steps(run / "checkpoints")[-1] == steps[-1]
    ended = Told(run, cache, data_dir).end()
    assert [one.code for one in ended] == [0, 0], ended
    assert f"after step {steps[-1]}/12" in ended[0].out
    assert metrics(run) == metrics(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(whole))


def without_key_biases(state):
    """Leave out what softmax makes zero: Adam blows its rounding errors up to whole steps."""

    def rest(path, leaf):
        is_qkv_bias = "qkv.bias" in jax.tree_util.keystr(path)
        return np.asarray(leaf).reshape(3, -1)[::2] if is_qkv_bias else leaf

    return jax.tree_util.tree_map_with_path(rest, state)


def test_two_processes_go_on_from_the_same_sound_checkpoint(pair):
    run, ((out, error), _) = pair
    assert "checkpoints/12 is damaged (process 0: " in error
    assert "after step 8/12" in out
    assert list_steps(run / "checkpoints") == [8, 12]
    assert list_steps(run / "damaged") == [12]
    assert (run / "curves.png").exists()
    assert (run / "predictions.png").exists()
    assert not list(run.glob(".job-*"))


def test_two_processes_evaluate_together(pair, capsys):
    run, ((out, _), _) = pair
    assert main(["eval", str(run)]) == 0
    alone = capsys.readouterr().out
    assert "step 12, 360 held-out images" in alone
    assert alone in out


def test_only_the_first_process_speaks_and_both_end_alike(pair):
    _, ((out, error), (other_out, other_error)) = pair
    assert "4 x cpu of 2 processes (data 2, fsdp 2)" in out
    assert "another configuration (seed: 0 -> 3)" in error
    for lines in (out, other_out):
        assert lines.splitlines()[-1] == "0 0 2 0"
    # Gloo writes from several threads, so that its lines may be broken.
    gloo = ("[Gloo]", "peer ranks")
    told = [x for x in other_out.splitlines()[:-1] if not any(words in x for words in gloo)]
    assert told == []
    assert "natjax" not in other_error


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, None),
        ({"coordinator": "a:1", "processes": 2, "process": 1}, {}, ("a:1", 2, 1)),
        (
            {"process": 0},
            {
                "JAX_COORDINATOR_ADDRESS": "[::1]:80",
                "JAX_NUM_PROCESSES": "3",
                "JAX_PROCESS_ID": "2",
            },
            ("[::1]:80", 3, 0),
        ),
    ],
)
def test_where_this_process_is(given, environment, expected):
    assert processes.settings(DistributedConfig(**given), environment) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, r"distributed.processes is missing.* --distributed.process I"),
        ({"processes": 2, "process": 0}, "distributed.coordinator is missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "must be HOST:PORT .* got 'a'"),
        ({"coordinator": "a:70000", "processes": 2, "process": 0}, "HOST:PORT of process 0"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, "at least 1, got 0"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, r"in \[0, 2\).* got 2"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        processes.settings(DistributedConfig(**given), {})


def test_a_number_in_the_environment_that_is_none():
    with pytest.raises(UserError, match=r"distributed\.process must be an integer, got 'x'"):
        processes.settings(
            DistributedConfig(coordinator="a:1", processes=2), {"JAX_PROCESS_ID": "x"}
        )


LAUNCHED = Launched(
    launcher="Open MPI",
    job="Open MPI 1",
    coordinator="a:1",
    processes=2,
    process=1,
    local_processes=2,
    local_process=1,
)


@pytest.mark.parametrize(
    ("given", "environment", "launch", "expected"),
    [
        ({}, {}, {}, ("a:1", 2, 1)),
        ({"coordinator": "b:2"}, {}, {}, ("b:2", 2, 1)),
        ({}, {"JAX_COORDINATOR_ADDRESS": "c:3"}, {"coordinator": None}, ("c:3", 2, 1)),
        ({"coordinator": "b:2"}, {}, {"processes": 1, "process": 0}, None),
    ],
)
def test_a_launcher_tells_what_is_not_given(given, environment, launch, expected):
    launch = dataclasses.replace(LAUNCHED, **launch)
    assert processes.settings(DistributedConfig(**given), environment, launch) == expected


def test_a_launcher_that_does_not_tell_the_address():
    launch = dataclasses.replace(LAUNCHED, coordinator=None)
    with pytest.raises(UserError, match=r"Open MPI does not tell .* --distributed.coordinator"):
        processes.settings(DistributedConfig(), {}, launch)


def outcomes(address, joins, timeout=20):
    """What calls of `wait_for_all` (processes, process, job) end with, each in its own thread."""
    found = [None] * len(joins)

    def call(place, processes, process, job=""):
        try:
            wait_for_all(address, processes, process, float(timeout), job)
        except UserError as error:
            found[place] = str(error)

    threads = [threading.Thread(target=call, args=(i, *join)) for i, join in enumerate(joins)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_meet(address):
    assert outcomes(address, [(4, 2), (4, 0), (4, 3), (4, 1)]) == [None] * 4


def test_all_meet_over_ipv6():
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6 beside IPv4")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
    assert outcomes(f"[::1]:{port}", [(2, 0), (2, 1)]) == [None] * 2


def test_another_job_at_the_same_port_is_not_let_in(address):
    first, other = outcomes(address, [(3, 0, "mine"), (2, 1, "other")], timeout=0.5)
    assert "2 of 3 processes did not come within 0.5 s: missing distributed.process 1, 2" in first
    assert "process 0 did not answer or broke off" in other


def test_a_missing_process_is_named_everywhere(address):
    messages = outcomes(address, [(4, 0), (4, 2)], timeout=1)
    for message in messages:
        assert "2 of 4 processes did not come within 1 s: missing distributed.process 1, 3" in (
            message
        )


def test_a_missing_first_process(address):
    (message,) = outcomes(address, [(2, 1)], timeout=0.3)
    assert f"process 1 cannot reach process 0 at {address} within 0.3 s" in message
    assert "Connection refused" in message


def test_two_processes_of_one_index(address):
    messages = outcomes(address, [(3, 0), (3, 1), (3, 1)], timeout=2)
    assert "two processes were started as distributed.process 1" in messages[0]


def test_processes_that_disagree_on_their_number(address):
    first, other = outcomes(address, [(2, 0), (3, 1)], timeout=2)
    assert "distributed.processes is 2 in process 0 and 3 in process 1" in first
    assert "did not answer or broke off" in other


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            UserError,
            match=rf"cannot listen on port {port} \(Address already in use\); .*another port",
        ):
            wait_for_all(f"127.0.0.1:{port}", 2, 0, 1.0)


@pytest.mark.parametrize("said", [b"", b"\n", b"GET / HTTP/1.1\r\n\r\n\n", b"[1]\n", b"{" * 9000])
def test_strangers_do_not_count(address, said):
    host, port = address.split(":")

    def intrude():
        while True:
            try:
                with socket.create_connection((host, int(port))) as stranger:
                    stranger.sendall(said)
                return
            except ConnectionError:
                time.sleep(0.01)

    thread = threading.Thread(target=intrude)
    thread.start()
    (message,) = outcomes(address, [(2, 0)], timeout=0.5)
    thread.join()
    assert re.search("missing distributed.process 1", message)
