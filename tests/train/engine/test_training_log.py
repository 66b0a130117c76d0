import json

import numpy as np
import pytest

from natjax.train.engine import training_log
from natjax.train.engine.trainer import build_trainer
from natjax.train.engine.training_log import TrainingLog
from natjax.train.reporting.metrics import MetricsWriter, read_metrics
from natjax.train.reporting.progress import ProgressDisplay
from natjax.train.reporting.throughput import Throughput
from natjax.train.tasks.classification.task import Classification


@pytest.fixture
def trainer(config):
    return build_trainer(Classification(config))


def steps(*losses):
    return [
        {
            "accuracy": np.float32(0.5),
            "loss": np.float32(loss),
            "grad_norm": np.float32(1) / 3,
            "learning_rate": np.float32(0.1),
            "skipped": np.float32(np.isinf(loss)),
        }
        for loss in losses
    ]


def line_of(log, tmp_path):
    with ProgressDisplay(24, 0) as display:
        writer = MetricsWriter(tmp_path / "m.jsonl")
        log.write(4, writer, display)
        writer.close()
    return list(read_metrics(tmp_path / "m.jsonl"))[-1]


def test_a_line_that_a_checkpoint_has_cut_is_the_same_to_the_bit(trainer, tmp_path):
    whole = TrainingLog(trainer, {})
    whole.add(steps(1 / 3, 2 / 3, 0.1))
    first = TrainingLog(trainer, {})
    first.add(steps(1 / 3, 2 / 3))
    first.evaluated, first.skipped_in_a_row = False, 2
    meta = json.loads(json.dumps({"log": first.to_json()}))
    second = TrainingLog(trainer, meta)
    assert (second.evaluated, second.skipped_in_a_row) == (False, 2)
    second.add(steps(0.1))
    assert line_of(second, tmp_path) == line_of(whole, tmp_path)


def test_means_are_over_the_updates_that_counted(trainer, tmp_path, capsys):
    log = TrainingLog(trainer, {})
    log.add(steps(1.0, np.inf, 3.0))
    line = line_of(log, tmp_path)
    assert (line["loss"], line["skipped"]) == (2.0, 1)
    order = ["kind", "step", "epoch", "loss", "accuracy", "grad_norm", "learning_rate", "skipped"]
    assert list(line) == order  # the first interval compiles
    captured = capsys.readouterr()
    assert "loss 2.0000  top-1 50.00%" in captured.out
    assert "1 updates up to step 4 were left out" in captured.err


def test_speed_is_in_the_metrics_and_on_the_line(trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_log, "peak_memory", lambda _: 12_340_000_000)
    log = TrainingLog(trainer, {})
    log.throughput = Throughput(16, iter([0.0, 1.0, 3.0, 4.0]).__next__)
    log.throughput.end_interval(0)
    with log.throughput.waiting():
        pass
    log.add(steps(1.0))
    line = line_of(log, tmp_path)
    assert (line["images_per_second"], line["data_wait"]) == (16.0, 0.5)
    assert line["peak_memory_bytes"] == 12_340_000_000
    assert "16 images/s  data wait 50%  12.3 GB" in capsys.readouterr().out


def test_where_every_update_was_left_out_there_is_no_mean(trainer, tmp_path, capsys):
    log = TrainingLog(trainer, {})
    log.add(steps(np.inf, np.inf))
    line = line_of(log, tmp_path)
    assert (line["loss"], line["accuracy"], line["skipped"]) == (None, None, 2)
    assert "loss" not in capsys.readouterr().out
