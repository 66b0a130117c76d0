"""The site's sources; `make docs-check` builds it, with its links checked and its notebooks run."""

import json
import pathlib
import re
import tomllib

import pytest

import natjax

ROOT = pathlib.Path(__file__).parents[1]
# Exported, too; their own names are in the reference.
MODULES = ("__version__", "sharding", "weights")
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def test_every_exported_name_is_in_the_reference():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    listed = set(re.findall(r"\.\. auto(?:function|class|data):: (\w+)$", pages, re.MULTILINE))
    exported = {name for name in natjax.__all__ if name not in MODULES}
    assert listed == exported


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_without_outputs_and_listed(path):
    notebook = json.loads(path.read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    assert path.stat().st_size < 200_000
    assert f"({path.name})" in (path.parent / "index.md").read_text()


def test_there_are_six_notebooks():
    assert len(NOTEBOOKS) == 6


def test_the_citation_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
