import json

import pytest

from natjax.train.reporting.metrics import MetricsWriter, drop_after, read_metrics

LINES = [{"kind": "train", "step": step, "loss": 1 / step} for step in (10, 20, 30)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(file)
    for line in LINES:
        writer.write(**line)
    writer.close()
    return file


def test_lines_come_back(path):
    assert list(read_metrics(path)) == LINES


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (10, 1), (25, 2), (30, 3), (99, 3)])
def test_lines_past_the_checkpoint_are_dropped(path, step, kept):
    drop_after(path, step)
    assert list(read_metrics(path)) == LINES[:kept]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("tail", ['{"kind": "tra', "\0\0\0", "[1]\n", '{"loss": 1}\n', '"\xff'])
def test_a_line_cut_off_by_a_kill_is_dropped(path, tail):
    with path.open("a", encoding="latin-1") as file:
        file.write(tail)
    drop_after(path, 1000)
    assert [json.loads(text) for text in path.read_text().splitlines()] == LINES


def test_a_run_without_metrics_begins_with_an_empty_file(tmp_path):
    drop_after(tmp_path / "m.jsonl", 5)
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_other_processes_write_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "m.jsonl", writes=False)
    writer.write(step=1)
    writer.close()
    assert not (tmp_path / "m.jsonl").exists()
