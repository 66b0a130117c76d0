"""The promise of the first run: at least 97 % on held-out digits; and a quick sign of learning."""

import json

import pico
import pytest

from natjax.cli import main


def accuracy(run) -> float:
    """Top-1 accuracy of the averaged weights at the end of a run."""
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["weights"] == "ema"
    return line["top1"]


@pytest.mark.usefixtures("no_pictures")
def test_a_very_small_model_learns_digits_quickly(tmp_path):
    run = tmp_path / "run"
    flags = pico.flags(
        run,
        steps=100,
        log_every=50,
        checkpoint__every=100,
        eval_every=100,
        batch_size=32,
        model__init="fan_in",
        model__drop_path=0,
        optimizer__learning_rate=1e-2,
    )
    assert main(["train", "digits", *flags]) == 0
    assert accuracy(run) >= 0.3  # by chance 0.1


@pytest.mark.optimised
@pytest.mark.slow
def test_digits_reach_97_percent(tmp_path):
    assert main(["train", "digits", "--run", str(tmp_path / "run")]) == 0
    assert accuracy(tmp_path / "run") >= 0.97
