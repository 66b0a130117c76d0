"""The promise of the first run: at least 97 % on held-out digits. Takes minutes."""

import json

import pytest

from natjax.cli import main


@pytest.mark.optimised
def test_digits_reach_97_percent(tmp_path):
    assert main(["train", "digits", "--run", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["weights"] == "ema"
    assert json.loads(lines[-1])["top1"] >= 0.97
