import dataclasses
import re

import pytest

from natjax.cli import main
from natjax.train.cli.train import parse_train
from natjax.train.config.fitting import fitted, fitted_optimizer, written_settings
from natjax.train.config.settings import CheckpointConfig, OptimizerConfig, RunConfig

PRESET = RunConfig(log_every=20, checkpoint=CheckpointConfig(every=100), eval_every=300)


def intervals(**written):
    names = {"save": "checkpoint.every", "log": "log_every", "eval": "eval_every"}
    written = {names.get(name, name): str(value) for name, value in written.items()}
    return fitted(PRESET, written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, (20, 100, 300)),
        ({"steps": 60}, (20, 100, 300)),  # the last step logs, saves and evaluates anyway
        ({"steps": 10}, (5, 100, 300)),
        ({"steps": 1}, (1, 100, 300)),
        ({"log": 7}, (7, 98, 294)),
        ({"log": 500}, (500, 500, 500)),
        ({"save": 30}, (15, 30, 300)),
        ({"eval": 30}, (15, 30, 30)),
        ({"eval": 140}, (20, 20, 140)),
        ({"eval": 7}, (7, 7, 7)),
        ({"log": 10, "eval": 250}, (10, 50, 250)),
        ({"save": 50, "eval": 150, "steps": 4}, (2, 50, 150)),
    ],
)
def test_intervals_of_a_preset_suit_those_that_are_written(written, expected):
    found, line = intervals(**written)
    assert (found.log_every, found.checkpoint.every, found.eval_every) == expected
    assert bool(line) == (expected != (20, 100, 300) and len(line) > 0)
    own = {"log_every": "log", "checkpoint.every": "save", "eval_every": "eval"}
    for name in re.findall(r"(\S+) \d+ -> ", line):
        assert own[name] not in written


def test_the_line_names_what_has_changed():
    assert intervals(log=7)[1] == (
        "to suit the intervals given: checkpoint.every 100 -> 98, eval_every 300 -> 294"
    )
    assert intervals(log=10)[1] == ""


def test_what_the_user_has_written_is_read_from_flags_and_file():
    flags = ["--checkpoint.every", "5", "--log-every=1", "--optimizer.warmup_steps", "3", "--wandb"]
    file = {"eval-every": 10, "optimizer": {"shorten": True}}
    assert written_settings(flags, file) == {
        "checkpoint.every": "5",
        "log_every": "1",
        "optimizer.warmup_steps": "3",
        "wandb": "",
        "eval_every": "10",
        "optimizer.shorten": "True",
    }


@pytest.mark.parametrize(
    ("steps", "expected", "line"),
    [
        (200, (60, 10.0), ""),
        (60, (6, 0.6), "to fit 60 steps: warm-up 60 -> 6 steps, cooldown 100 -> 6 steps"),
        (5, (0, 0.0), "to fit 5 steps: warm-up 60 -> 0 steps, cooldown 100 -> 0 steps"),
    ],
)
def test_warm_up_and_cooldown_fit_a_short_run(steps, expected, line):
    config = OptimizerConfig(warmup_epochs=6.0, cooldown_epochs=10.0, shorten=True)
    found, said = fitted_optimizer(config, steps if steps < 200 else 320, 10.0)
    warmup = round(found.warmup_epochs * 10) if found.warmup_epochs else found.warmup_steps
    assert (warmup, found.cooldown_epochs) == expected
    assert said == line
    kept = dataclasses.replace(config, shorten=False)
    assert fitted_optimizer(kept, steps, 10.0) == (kept, "")


@pytest.mark.parametrize(
    ("flags", "shortens"),
    [
        ("--steps 60", True),
        ("--steps 60 --optimizer.warmup-steps 60", False),
        ("--steps 60 --optimizer.cooldown-epochs=1", False),
        ("--steps 60 --optimizer.warmup-steps 60 --optimizer.shorten", True),
    ],
)
def test_only_what_the_user_wrote_himself_is_refused(flags, shortens):
    _, config = parse_train("digits", flags.split())
    assert config.optimizer.shorten == shortens


def test_a_written_warm_up_that_does_not_fit_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "train digits --steps 60 --optimizer.warmup-steps 60"
    assert main(words.split()) == 2
    assert "optimizer.warmup_steps must be in [0, 60)" in capsys.readouterr().err


def test_a_file_of_settings_counts_as_written(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("log_every = 7\n[optimizer]\nwarmup_steps = 3\n")
    _, config = parse_train("digits", [], path)
    assert (config.log_every, config.checkpoint.every, config.eval_every) == (7, 98, 98)
    assert not config.optimizer.shorten
