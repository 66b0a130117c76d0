"""The README's Python snippets run, in order, and its commands exist."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

from natjax.weights import PUBLISHED
from natjax.weights.published import published_table

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.optimised
def test_python_snippets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    # As a reader's JAX is set up, not as the tests'.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        namespace = {}
        for snippet in blocks("python"):
            exec(compile(snippet, "README.md", "exec"), namespace)


def test_commands_are_known():
    commands = {m.group(1) for m in re.finditer(r"^natjax (\w+)", "\n".join(blocks("sh")), re.M)}
    assert {"train", "eval", "predict", "models", "convert", "export"} <= commands
    help_text = subprocess.run(
        [sys.executable, "-m", "natjax", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for command in commands:
        assert re.search(rf"\b{command}\b", help_text), command


def test_length():
    assert len(README.splitlines()) <= 180


def test_every_published_checkpoint_is_in_the_docs():
    """The table there is made from the data: `natjax.weights.published.published_table`."""
    text = (pathlib.Path(__file__).parents[1] / "docs" / "weights.md").read_text()
    assert len(PUBLISHED) == int(re.search(r"All (\d+) published checkpoints", README)[1])
    assert published_table() in text
