"""Golden arrays: the selection committed under tests/golden, or the full set where there is one.

The full set is looked for in the folder that the environment variable NATJAX_GOLDEN names, then in
``../shared/golden`` beside the repository.
"""

import functools
import json
import os
import pathlib

import numpy as np

COMMITTED = pathlib.Path(__file__).parents[1] / "golden"
_BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "golden"
FULL = pathlib.Path(os.environ.get("NATJAX_GOLDEN", _BESIDE))


def golden_files(pattern="*.npz"):
    """Golden files that match a pattern, by name; the full one where it exists."""
    folders = (COMMITTED, FULL, FULL / "dense")
    found = {path.name: path for folder in folders for path in folder.glob(pattern)}
    return [found[name] for name in sorted(found)]


@functools.cache
def load(name):
    """Arrays of a golden file, by its name with or without ``.npz``; read when first used."""
    name = name.removesuffix(".npz") + ".npz"
    (path,) = golden_files(name)
    return np.load(path)


def pth_files(*names):
    """The PyTorch files of these names that are there; the full set's where there is one."""
    found = {path.name: path for folder in (COMMITTED, FULL) for path in (folder / "pth").glob("*")}
    return [found[name] for name in names if name in found]


def cases(name, array):
    """Prefixes of a file's keys that end in ``/array``: ``a/sq`` of ``a/sq/logits``."""
    return [key.removesuffix(f"/{array}") for key in load(name).files if key.endswith(f"/{array}")]


@functools.cache
def committed_cases(name, array):
    """As `cases`, for the committed selection of the file alone."""
    with np.load(COMMITTED / f"{name}.npz") as file:
        return [key.removesuffix(f"/{array}") for key in file.files if key.endswith(f"/{array}")]


def under(name, prefix):
    """All arrays of a file whose key starts with ``prefix/``, by the rest of the key."""
    arrays = load(name)
    return {
        key.removeprefix(f"{prefix}/"): arrays[key]
        for key in arrays.files
        if key.startswith(f"{prefix}/")
    }


def record(name, key):
    """A JSON document stored as a string, such as ``a/config`` or ``index``."""
    return json.loads(str(load(name)[key]))


def error(actual, expected):
    """``max|actual - expected| / max|expected|``, the measure of the goldens' README."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
