"""The Python snippets of the README and the pages run, in order, and the commands exist."""

import pathlib
import re
import runpy
import subprocess
import sys

import jax
import pytest

from natjax.weights import PUBLISHED

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.optimised
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(f"docs/{name}.md" for name in ("quickstart", "ops", "models", "detection")),
        *(f"docs/guides/{name}.md" for name in ("own_model", "backends", "export")),
    ],
)
def test_python_snippets(page, tmp_path, monkeypatch):
    """Those marked "py" instead of "python" need what no test may: a download."""
    snippets = blocks((ROOT / page).read_text(), "python")
    assert snippets
    monkeypatch.chdir(tmp_path)
    # As a reader's JAX is set up, not as the tests'.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        namespace = {}
        for snippet in snippets:
            exec(compile(snippet, page, "exec"), namespace)


def test_commands_are_known():
    snippets = "\n".join(blocks(README, "sh"))
    commands = {m.group(1) for m in re.finditer(r"^natjax (\w+)", snippets, re.M)}
    assert {"train", "eval", "predict", "models", "convert", "export"} <= commands
    help_text = subprocess.run(
        [sys.executable, "-m", "natjax", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for command in commands:
        assert re.search(rf"\b{command}\b", help_text), command


def test_a_newcomer_reads_it_to_the_end():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_links_lead_somewhere():
    pages = (ROOT / "docs").rglob("*.md")
    # The site that was built lies there too, with copies of its sources.
    for page in [ROOT / "README.md", *(x for x in pages if "_build" not in x.parts)]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_published_checkpoint_is_in_the_docs():
    """The table there is made from the data: `scripts/weights-table`."""
    published_table = runpy.run_path(str(ROOT / "scripts" / "weights-table"))["published_table"]
    text = (ROOT / "docs" / "weights.md").read_text()
    assert len(PUBLISHED) == int(re.search(r"All (\d+) published checkpoints", README)[1])
    assert published_table() in text
