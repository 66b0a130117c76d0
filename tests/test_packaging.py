"""What is in the tree is in the wheel, and nothing else is importable from it."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TABLE = "kernels/tuning/tuned/pallas_triton/some-gpu.json"
FOLDERS = {"natjax": "natjax", "natjax.kernels": "kernels", "natjax.train": "train"}


def packages():
    """Every package of the tree, by import name: folders with modules under the three roots."""
    found = set()
    for name, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *inner)))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from the sdist of a copy, which has a table of settings more."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    unneeded = shutil.ignore_patterns(".*", "build", "dist", "runs", "tests", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unneeded)
    (source / TABLE).parent.mkdir(parents=True)
    (source / TABLE).write_text('{"configs": {}}')
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return file.namelist()


def test_every_package_is_listed():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages()


def test_the_links_point_at_the_folders():
    for name in ("kernels", "train"):
        link = ROOT / "natjax" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_wheel_has_one_top_level_and_every_module(wheel):
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"natjax"}
    for name, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = pathlib.PurePosixPath(name.replace(".", "/"))
            assert str(inside / path.relative_to(ROOT / folder).as_posix()) in wheel
    names = ("imagenet1k.txt", "WORDNET-LICENSE")
    data = {"natjax/py.typed", "natjax/__init__.pyi", *(f"natjax/class_names/{n}" for n in names)}
    assert data <= set(wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


def test_wheel_has_the_tables_of_tuned_settings(wheel):
    tables = {
        f"natjax/{path.relative_to(ROOT)}" for path in ROOT.glob("kernels/tuning/tuned/*/*.json")
    }
    assert tables | {f"natjax/{TABLE}"} <= set(wheel)


def test_top_level_packages_hold_a_docstring_and_nothing_else():
    for folder in ("kernels", "train"):
        source = (ROOT / folder / "__init__.py").read_text().strip()
        assert source.startswith('"""')
        assert source.endswith('"""')
        assert source.count('"""') == 2


def test_arrows_between_packages_go_one_way():
    """train -> natjax -> kernels; only the command line reaches for train."""
    forbidden = {
        "kernels": (
            "flax",
            "optax",
            "tyro",
            "natjax.train",
            "natjax.nn",
            "natjax.backbones",
            "natjax.create",
        ),
        "natjax": ("natjax.train", "optax", "orbax", "grain", "tensorflow_datasets", "tyro"),
    }
    for folder, names in forbidden.items():
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name == "cli" or path.name == "__main__.py":
                continue
            text = path.read_text()
            for name in names:
                assert f"import {name}" not in text, path
                assert f"from {name}" not in text, path


def test_folders_that_lie_around_do_not_change_how_imports_are_sorted(tmp_path):
    """`make demo` makes runs/, and a helper of the tests is called runs, too."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "tests" / "support", tmp_path / "tests" / "support")
    for path in (tmp_path / "tests" / "support").glob("*.py"):
        (tmp_path / path.stem).mkdir()
        source = f"import {path.stem}\n\nimport natjax\n"
        (tmp_path / "tests" / f"test_{path.stem}.py").write_text(source)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "I", str(tmp_path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_version_is_the_same_everywhere():
    import natjax

    assert PROJECT["project"]["version"] == natjax.__version__
    assert f"## [{natjax.__version__}]" in (ROOT / "CHANGELOG.md").read_text() or (
        "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_no_large_files():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    sizes = {n: (ROOT / n).lstat().st_size for n in tracked.stdout.split("\0") if n}
    assert max(sizes.values()) < 2**20
    golden = [size for name, size in sizes.items() if name.startswith("tests/golden/")]
    assert sum(golden) < 5.0e6
