import os
import signal
import threading

import pytest
from jobs import Job, free_port

from natjax.train.cluster.preemption import StopRequestedError, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number, capfd):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.due()
        signal.raise_signal(number)
        assert signals.due()
        assert signals.number == number
        with pytest.raises(StopRequestedError):
            list(signals.watch([1, 2]))
    assert signal.getsignal(number) is before
    said = "natjax: stopping after this step; Ctrl-C again stops at once\n"
    assert capfd.readouterr().err == (said if number == signal.SIGINT else "")


def test_ctrl_c_twice_stops_at_once():
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_a_preemption_still_waits_for_the_step(capfd):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.due()


def test_signals_are_left_alone_outside_of_the_main_thread():
    def enter():
        with StopSignals() as signals:
            seen.append(signals.due())

    seen: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


JOB = """
import sys, time, signal
from natjax.train.cluster import processes
from natjax.train.config.settings import DistributedConfig
from natjax.train.cluster.preemption import StopSignals
index, port, number = map(int, sys.argv[1:])
there = f"127.0.0.1:{port}"
processes.start(DistributedConfig(coordinator=there, processes=2, process=index))
with StopSignals() as signals:
    for step in range(1, 1000):
        time.sleep(0.01 + 0.01 * index)
        if index == 0 and step == 5:
            signal.raise_signal(number)
        if signals.due():
            print(step, signal.Signals(signals.number).name)
            break
"""


def test_all_processes_of_a_job_stop_after_the_same_step():
    port, number = str(free_port()), str(int(signal.SIGINT))
    with Job([["-c", JOB, str(index), port, number] for index in range(2)], os.environ) as job:
        first, second = job.ended(timeout=120)
    assert first.out.split()[0] == second.out.split()[0], first.err + second.err
    assert [first.out.split()[1], second.out.split()[1]] == ["SIGINT", "SIGTERM"]
