import dataclasses
import sys

import pytest

from natjax.train import console
from natjax.train.reporting.progress import ProgressDisplay, Shown, format_seconds
from natjax.train.reporting.throughput import Throughput

LINE = Shown(
    step=20,
    epoch=1.5,
    quantities=["loss 1.5000", "top-1 25.00%"],
    learning_rate=1e-3,
    rate=1234.0,
    unit="images",
    left=65.0,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--:--"), (0.0, "0:00"), (61.4, "1:01"), (3661.0, "1:01:01")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_throughput_leaves_out_compilation_and_evaluation():
    now = [0.0]
    rate = Throughput(10, lambda: now[0])
    assert rate.rate(0) == 0
    now[0] = 100.0  # compiling
    rate.start(5)
    now[0] = 110.0
    rate.exclude(5.0)
    assert rate.rate(15) == pytest.approx(20.0)
    assert rate.seconds_left(15, 35) == pytest.approx(10.0)
    rate.start(15)  # no new beginning
    assert rate.rate(15) == pytest.approx(20.0)


def test_plain_lines_where_nobody_watches(capsys):
    with ProgressDisplay(20, 0, every=1e9) as display:
        for step in (5, 10, 20):
            display.show(dataclasses.replace(LINE, step=step))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # of compiling, the first and the last
    assert lines[2] == (
        "step     20/20  epoch 1.50  loss 1.5000  top-1 25.00%  lr 1.00e-03  1,234 images/s"
        "  left 1:05"
    )


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"mfu": 0.4123}, "lr 1.00e-03  1,234 images/s  MFU 41.2%"),
        ({"skipped": 3}, "lr 1.00e-03  1,234 images/s  3 skipped"),
        (
            {"skipped": 4, "quantities": []},
            "epoch 1.50  lr 1.00e-03  1,234 images/s  4 skipped",
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
