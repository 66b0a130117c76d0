import dataclasses
import sys

import jax
import pytest

from natjax.train import console
from natjax.train.reporting.progress import ProgressDisplay, Shown, format_seconds
from natjax.train.reporting.throughput import Interval, Throughput, peak_memory

LINE = Shown(
    step=20,
    epoch=1.5,
    quantities=["loss 1.5000", "top-1 25.00%"],
    learning_rate=1e-3,
    unit="images",
    interval=Interval(1234.0, 0.031),
    left=65.0,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--:--"), (0.0, "0:00"), (61.4, "1:01"), (3661.0, "1:01:01")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


class Clock:
    """Tells the time that it was set to."""

    now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_throughput_is_that_of_the_last_interval_without_compilation_and_evaluation():
    clock = Clock()
    throughput = Throughput(10, clock)
    clock.passes(100.0)  # compiling
    assert throughput.seconds_left(5, 35) is None
    assert throughput.end_interval(5) is None
    clock.passes(15.0)
    throughput.exclude(5.0)
    assert throughput.end_interval(15) == Interval(rate=10.0, data_wait=0.0)
    assert throughput.seconds_left(15, 35) == pytest.approx(20.0)
    clock.passes(40.0)  # ten steps that are four times as slow
    assert throughput.end_interval(25).rate == pytest.approx(2.5)
    assert throughput.seconds_left(25, 35) == pytest.approx(25.0)  # by the mean


def test_waiting_for_data_is_a_share_of_the_interval():
    clock = Clock()
    throughput = Throughput(10, clock)
    with throughput.waiting():
        clock.passes(50.0)  # before the first step
    throughput.end_interval(1)
    for _ in range(4):
        with throughput.waiting():
            clock.passes(0.5)
        clock.passes(1.5)
    throughput.exclude(0.0)
    assert throughput.end_interval(5).data_wait == pytest.approx(0.25)
    clock.passes(1.0)
    assert throughput.end_interval(6).data_wait == 0


class Device:
    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_memory_is_that_of_the_fullest_device_where_the_backend_tells():
    full, half = ({"peak_bytes_in_use": peak, "bytes_in_use": 1} for peak in (800, 400))
    assert peak_memory([Device(half), Device(full)]) == 800
    assert peak_memory([Device(None), Device({})]) is None
    assert peak_memory(jax.devices("cpu")) is None


def test_plain_lines_where_nobody_watches(capsys):
    with ProgressDisplay(20, 0, every=1e9) as display:
        for step in (5, 10, 20):
            display.show(dataclasses.replace(LINE, step=step))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # of compiling, the first and the last
    assert lines[2] == (
        "step     20/20  epoch 1.50  loss 1.5000  top-1 25.00%  lr 1.00e-03  1,234 images/s"
        "  data wait 3%  left 1:05"
    )


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"interval": None}, "top-1 25.00%  lr 1.00e-03"),
        ({"mfu": 0.4123}, "lr 1.00e-03  1,234 images/s  data wait 3%  MFU 41.2%"),
        ({"memory": 12_340_000_000}, "1,234 images/s  data wait 3%  12.3 GB"),
        ({"skipped": 3}, "lr 1.00e-03  1,234 images/s  data wait 3%  3 skipped"),
        (
            {"skipped": 4, "quantities": []},
            "epoch 1.50  lr 1.00e-03  1,234 images/s  data wait 3%  4 skipped",
        ),
    ],
)
def test_what_a_line_says(fields, end):
    assert str(dataclasses.replace(LINE, **fields)).endswith(end)


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    with ProgressDisplay(20, 0) as display:
        display.show(LINE)
    out = capsys.readouterr().out
    assert "20/20" in out
    assert "loss 1.5000" in out


@pytest.mark.parametrize(("count", "watched"), [(1, True), (2, False)])
def test_no_bar_for_several_processes(monkeypatch, count, watched):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # as mpirun has it
    monkeypatch.setattr(console, "_count", count)
    assert console.is_terminal() == watched


def test_only_the_first_process_speaks(capsys):
    try:
        console.set_process(1, 2)
        console.say("no")
        console.warn("no")
        assert not console.is_terminal()
    finally:
        console.set_process(0, 1)
    console.say("[yes]")
    assert capsys.readouterr().out == "[yes]\n"
