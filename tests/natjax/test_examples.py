"""The examples run."""

import pathlib
import runpy

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def test_linen_bridge(capsys):
    example = runpy.run_path(str(EXAMPLES / "linen.py"))
    assert example["main"]() == (2, 8, 8, 5)
    assert "logits (2, 8, 8, 5)" in capsys.readouterr().out
