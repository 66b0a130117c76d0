"""A task in a file of its own trains, goes on and is evaluated with no change in the package."""

import json
import pathlib

import pytest

from natjax.cli import main

EXAMPLE = str(pathlib.Path(__file__).parents[3] / "examples" / "denoise.py")
FLAGS = ["--steps", "40", "--log-every", "10", "--checkpoint.every", "20", "--eval-every", "20"]
FLAGS += ["--mesh.data", "2", "--accumulate", "2"]


def lines(run):
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.oldest
def test_the_example_of_denoising(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", EXAMPLE, "--run", str(run), *FLAGS]) == 0
    out = capsys.readouterr().out
    assert "averaged weights: squared error" in out
    assert (run / "curves.png").is_file()
    found = lines(run)
    losses = [line["loss"] for line in found if line["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert found[-1]["images"] == 297

    assert main(["train", EXAMPLE, "--run", str(run), *FLAGS]) == 0
    assert "All steps are done already" in capsys.readouterr().out
    assert main(["eval", str(run), "--task", EXAMPLE]) == 0
    assert "step 40, 297 held-out images" in capsys.readouterr().out


def test_a_run_does_not_say_what_file_to_run(tmp_path, capsys):
    """A run folder may come from a stranger."""
    (tmp_path / "config.json").write_text(json.dumps({"task": EXAMPLE}))
    assert main(["eval", str(tmp_path)]) == 2
    assert "a task of a file needs --task FILE.py" in capsys.readouterr().err


def test_a_setting_of_the_task_is_a_flag_and_has_its_rule(capsys):
    assert main(["train", EXAMPLE, "--noise", "0"]) == 2
    assert "noise must be positive, got 0.0" in capsys.readouterr().err
