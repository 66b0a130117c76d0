"""Wrong use of the command line, and its help."""

import re
import subprocess
import sys

import pytest

import natjax
from natjax.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "required: COMMAND"),
        ("frobnicate", "invalid choice: 'frobnicate'"),
        ("train", "required: PRESET.*see `natjax train --help`"),
        ("train digit", "unknown preset 'digit'; did you mean 'digits'"),
        (
            "train digits --model.name nat_mirco",
            "model.name must be a classifier, got 'nat_mirco'; did you mean 'nat_micro'",
        ),
        ("train digits --data.name digit", "unknown data set 'digit'; did you mean 'digits'"),
        ("train digits --steps 5 --optimizer.warmup-steps 5", r"warmup_steps must be in \[0, 5\)"),
        ("train digits --mesh.data 32 --mesh.fsdp 2", "at most the 8 devices here"),
        ("train fashion_mnist", "dataset-fashion-mnist"),
        (
            "eval nowhere",
            r"nowhere is no run folder \(it has no config.json\); `natjax train PRESET",
        ),
        ("eval gs://bucket/run", "RUN must be a folder .*got gs://bucket/run"),
        ("predict nowhere x.png", "nowhere is no run folder"),
        ("predict nowhere", "a run and images, or images and --model; got nowhere"),
        ("models zat_tny", "no model matches 'zat_tny'; did you mean 'nat_tiny'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("natjax: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-siz 4", "--batch-size"),
        ("--epochs many", "could not convert"),
        ("--batch-size 0", "batch_size must be positive, got 0"),
        ("--mesh.data 3", "multiple of mesh.data"),
        ("--run gs://bucket/run", "(NFS, Lustre, Filestore), got gs://bucket/run; the bucket's"),
        ("--data.prepared-dir s3://bucket", "data.prepared_dir must be a folder of this machine"),
    ],
)
def test_wrong_settings_are_explained(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["train", "digits", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train", "digits"]) == 2
    assert (
        "tyro is missing; install it with: pip install 'natjax[train]'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError(30, "Read-only")]
)
def test_storage_trouble_is_one_line(error, capsys, monkeypatch):
    from natjax.train.engine import loop

    def fails(*_):
        raise error

    monkeypatch.setattr(loop, "train", fails)
    assert main(["train", "digits"]) == 2
    assert re.fullmatch(r"natjax: .*(full|cannot be written).*\n", capsys.readouterr().err)


def test_models_lists_names_parameters_and_flops(capsys):
    assert main(["models", "nat_t*"]) == 0
    assert re.search(r"nat_tiny .* 27\.90 M .* 4\.3\d G .* 224x224", capsys.readouterr().out)


def test_models_cuts_no_name_off(capsys, monkeypatch):
    """In 80 columns, the width of what is no terminal, the longest name can be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["models", "cascade*_s_*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "casc" in line]
    assert names == natjax.list_models("cascade*_s_*")
    assert len(names) == 4


@pytest.mark.parametrize("words", [[], ["train"], ["eval"], ["predict"], ["models"]])
def test_help_names_every_argument(words, capsys):
    assert main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: natjax")
    if words == ["train"]:
        assert "fashion_mnist" in out
        assert "143  SIGTERM (preemption): after the step, with all saved" in out


def test_help_of_a_preset_lists_its_settings(capsys):
    assert main(["train", "digits", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("natjax train digits", "--optimizer.learning-rate", "--mesh.fsdp", "Accuracy"):
        assert text in out


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys; from natjax.cli import main; code = main(['--help'])\n"
        "heavy = {'jax', 'flax', 'numpy', 'tyro', 'rich', 'orbax', 'grain'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(str(found) if found else code)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_module_form_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "natjax", "train", "digit"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean 'digits'" in done.stderr
    assert "Traceback" not in done.stderr
