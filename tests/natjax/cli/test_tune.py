"""The command ``natjax tune``."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import pytest

import natjax
from natjax.cli import main
from natjax.kernels import registry
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.tuning import search, tables

pytestmark = [
    pytest.mark.skipif(
        "pallas_triton" not in registry.names(), reason="the kernels that are tuned are not there"
    ),
]

TINY = (
    "tune --shape 9 --kernel-size 3 --batch 1 --heads 1 --head-dim 8 --no-bias --repeats 1 "
    "--implementation pallas_triton"
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("NATJAX_INTERPRET", "1")
    monkeypatch.delenv("NATJAX_TUNED", raising=False)
    monkeypatch.setattr(search, "_MOST_RUNS", 1)


def test_a_table_that_ops_then_use(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "new" / "folder"
    assert main([*TINY.split(), "--candidates", "1", "--output", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert (
        lines[0] == f"measuring on interpreted, for {folder / 'pallas_triton' / 'interpreted.json'}"
    )
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["9", "forward"],
        ["9", "dquery"],
        ["9", "dkeyvalue"],
    ]
    assert re.search(r"us, suggested .* us; tile 16, chunk 16, \d warps, \d stages; ", lines[1])
    (path,) = folder.glob("*/*.json")
    ((key, entry),) = tables.read(path, KernelConfig).items()
    assert set(entry) == {"forward", "dquery", "dkeyvalue"}
    measured = json.loads(path.read_text())["measured"][key]["forward"]
    assert measured["jax"] == jax.__version__
    assert measured["microseconds"] <= measured["suggested_microseconds"]
    monkeypatch.setenv("NATJAX_TUNED", str(folder))
    x = jax.ShapeDtypeStruct((1, 9, 1, 8), "bfloat16")
    told = natjax.explain(x, x, x, 3, implementation="pallas_triton")
    assert {s.kernel: s.config for s in told.settings} == entry
    assert {s.source for s in told.settings} == {"NATJAX_TUNED"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape 9", "--shape and --kernel-size must be given together"),
        ("--kernel-size 3", "--shape and --kernel-size must be given together"),
        ("--shape 9x0 --kernel-size 3", "whole number of 1 or more; got '0'"),
        ("--shape nine --kernel-size 3", "whole number of 1 or more; got 'nine'"),
        ("--shape 2x2x2x2 --kernel-size 3", "1 to 3 axes; got 4"),
        ("--shape 9x9 --kernel-size 3x3x3", "--kernel-size must have one value or 2; got 3"),
        ("--shape 9 --kernel-size 5 --dilation 2", "kernel_size . dilation must not exceed"),
        ("--batch 0", "argument --batch: must be a whole number of 1 or more; got '0'"),
        ("--dtype float64", "invalid choice: 'float64'"),
        ("nat_tinny-*", "PROBLEM must match one of nat_tiny-stage1-d1.*got 'nat_tinny-.'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words, message, tmp_path, capsys):
    assert main(["tune", *words.split(), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("natjax: ")
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    """As natjax's own is where it was installed for all users."""
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(tables, "TUNED", file / "tuned")
    monkeypatch.delenv("NATJAX_INTERPRET")
    monkeypatch.setattr(search, "require_gpu", lambda: None)
    assert main(TINY.split()) == 2
    error = capsys.readouterr().err
    assert re.search(r"tuned cannot be written \(.*\); choose a folder by --output DIR", error)
    assert "NATJAX_TUNED=DIR" in error


def test_interpreted_timings_never_go_to_natjax_itself(capsys):
    assert main(TINY.split()) == 2
    assert "give --output DIR" in capsys.readouterr().err


def test_the_users_folder_is_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NATJAX_TUNED", str(tmp_path))
    path = tmp_path / "pallas_triton" / "interpreted.json"
    path.parent.mkdir()
    path.write_text("{}")
    # And a table that is none is left alone.
    assert main(TINY.split()) == 2
    assert "must hold an object as 'configs'" in capsys.readouterr().err
    assert path.read_text() == "{}"


def test_without_a_gpu(monkeypatch, capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("this is about machines without a GPU")
    monkeypatch.delenv("NATJAX_INTERPRET")
    assert main(["tune"]) == 2
    assert capsys.readouterr().err.startswith("natjax: tuning needs an NVIDIA GPU")


def test_an_interruption_keeps_what_was_found(tmp_path):
    command = [*TINY.split(), "--candidates", "30", "--output", str(tmp_path)]
    # Tests in the background may ignore Ctrl-C, and their children would inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from natjax.cli import main; sys.exit(main({command!r}))"
    )
    lines = []
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=os.environ, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if " forward ... " in line:  # comes when that is done
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    path = tmp_path / "pallas_triton" / "interpreted.json"
    assert lines[-1] == f"natjax: interrupted; {path} keeps the settings of 1 kernels\n"
    ((_, entry),) = tables.read(path, KernelConfig).items()
    assert list(entry) == ["forward"]


def test_nothing_that_works(tmp_path, monkeypatch, capsys):
    def fail(lowered):
        raise RuntimeError("no")

    monkeypatch.setattr(search, "_compile", fail)
    assert main([*TINY.split(), "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "nothing works; 0 candidates, skipped: " in error
    assert not list(tmp_path.iterdir())


def test_the_core_install_is_enough(tmp_path):
    """Everything that only the extras bring is out of reach."""
    code = f"""
import sys
extras = "optax orbax grain tensorflow_datasets tyro rich matplotlib sklearn PIL safetensors"
sys.modules.update(dict.fromkeys(extras.split()))
from natjax.cli import main
sys.exit(main({TINY.split()!r} + ["--candidates", "1", "--output", {str(tmp_path)!r}]))
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True)
    assert list(tmp_path.iterdir())
