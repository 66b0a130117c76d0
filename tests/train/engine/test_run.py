"""Whole runs through the command line, in this process, with a very small model."""

import base64
import csv
import dataclasses
import re
import shutil
import signal
from signal import SIGINT, SIGTERM

import jax
import jax.numpy as jnp
import numpy as np
import pico
import pytest
from PIL import Image
from runs import final_state, metrics, trainer_of

from natjax.cli import main
from natjax.train.checkpoint.checkpointer import list_steps, restore
from natjax.train.config.serialization import to_json
from natjax.train.config.settings import MeshConfig
from natjax.train.engine import finite, loop
from natjax.train.engine.summary import memory_per_device, run_summary
from natjax.train.engine.trainer import build_trainer
from natjax.train.tasks.classification.task import Classification


def train(run, **settings) -> int:
    return main(["train", "digits", *pico.flags(run, **settings)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A finished run, not to be changed."""
    # As the tests compile, so that results can be compared to the bit.
    jax.config.update("jax_disable_most_optimizations", True)
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(run, data__prepared_dir=data_dir) == 0
    return run


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run of one's own."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.oldest
def test_a_run_leaves_everything_in_its_folder(finished):
    names = {path.name for path in finished.iterdir()} - {".lock"}
    pictures = {"attention.png", "confusion.png", "curves.png", "predictions.png"}
    files = {"config.json", "confusion.csv", "metrics.jsonl", "report.html"}
    assert names == pictures | files | {"checkpoints"}
    page = (finished / "report.html").read_text()
    for name in pictures:
        assert base64.b64encode((finished / name).read_bytes()).decode() in page
    assert "averaged weights" in page
    assert list_steps(finished / "checkpoints") == [16, 24]
    lines = metrics(finished, clock=True)
    train_steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert train_steps == [4, 8, 12, 16, 20, 24]
    tests = [(line["step"], line["weights"]) for line in lines if line["kind"] == "eval"]
    assert tests == [(16, "raw"), (16, "ema"), (24, "raw"), (24, "ema")]
    assert all(line["images"] == 360 for line in lines if line["kind"] == "eval")
    assert lines[-1]["epoch"] == round(24 * 16 / 1437, 4)
    assert set(lines[1]) >= {
        "epoch",
        "loss",
        "accuracy",
        "grad_norm",
        "learning_rate",
        "images_per_second",
        "data_wait",
    }
    assert "images_per_second" not in lines[0]  # these steps were compiled
    for name in pictures:
        with Image.open(finished / name) as picture:
            assert picture.width > 500


def test_the_checkpoint_holds_the_configuration(finished):
    trainer = trainer_of(finished)
    meta = restore(finished / "checkpoints", trainer.compiled.target.items()).meta
    assert meta["config"] == {"task": "classification", **to_json(trainer.config)}


def test_the_start_says_what_is_trained(finished):
    trainer = trainer_of(finished)
    summary = run_summary(trainer)
    for text in (
        "model    nat_pico, float32\n",
        "3,756 parameters; 0.26 M FLOPs (multiply-adds) for each of the images",
        "digits: 1,437 images of 32x32 to train on, 10 classes",
        "24 steps of 16 images, 0.2672 epochs",
        "1 x cpu (data 1, fsdp 1), 16 images each",
        "60.1 kB a device: parameters 15 kB, optimizer 30.1 kB, averages 15 kB",
    ):
        assert text in summary
    split = build_trainer(
        Classification(dataclasses.replace(trainer.config, mesh=MeshConfig(fsdp=4)))
    )
    assert memory_per_device(split.compiled.target) < memory_per_device(trainer.compiled.target)


def test_running_again_says_that_all_is_done(copy, capsys):
    before = metrics(copy)
    assert train(copy) == 0
    out = capsys.readouterr().out
    assert "All steps are done already" in out
    assert str(copy / "curves.png") in out
    assert out.strip().endswith(str(copy / "report.html"))
    assert metrics(copy) == before


def send(patch, name: str, calls: int, *signals: int) -> None:
    """Let a function of the loop send signals to this process before its `calls`-th call."""
    original, seen = getattr(loop, name), []

    def wrapper(*args):
        seen.append(name)
        if len(seen) == calls:
            for number in signals:
                signal.raise_signal(number)
        return original(*args)

    patch.setattr(loop, name, wrapper)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_is_stopped_again_and_again_ends_as_if_it_had_not_been(
    finished, tmp_path, monkeypatch, capfd
):
    run = tmp_path / "run"
    # Not always Python's own: a shell starts what runs in the background with Ctrl-C ignored.
    handler = signal.getsignal(SIGINT)
    stops = [
        # Between two lines of metrics; during an evaluation; at once.
        ("put_batch", 15, [SIGTERM], 143, "stopped by SIGTERM after step 15, all saved", [8, 15]),
        ("evaluate", 1, [SIGINT], 130, "stopped by SIGINT after step 16, all saved", [15, 16]),
        ("put_batch", 2, [SIGINT, SIGINT], 130, "interrupted; the same command", [15, 16]),
    ]
    for name, calls, signals, code, message, kept in stops:
        with monkeypatch.context() as patch:
            send(patch, name, calls, *signals)
            assert train(run) == code
        assert message in capfd.readouterr().err
        assert list_steps(run / "checkpoints") == kept
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert train(run) == 0
    assert "after step 16/24" in capfd.readouterr().out
    assert metrics(run) == metrics(finished)
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(finished))
    assert signal.getsignal(SIGINT) is handler


def fixed_scores(patch) -> None:
    """Let evaluations score by step, so that which checkpoint is best is known."""
    original = loop._Run._evaluate_and_log
    scores = {8: 0.3, 16: 0.9, 24: 0.1}
    patch.setattr(loop._Run, "_evaluate_and_log", lambda *a: (original(*a), scores[a[2]])[1])


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_that_was_put_off_decides_about_the_best(tmp_path, monkeypatch):
    fixed_scores(monkeypatch)
    settings = {"eval_every": 8, "checkpoint__keep_latest": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, **settings) == 0
    with monkeypatch.context() as patch:
        send(patch, "put_batch", 16, SIGTERM)
        assert train(parts, **settings) == 143
    assert list_steps(parts / "checkpoints") == [8, 16]  # 8 is the best that is known of
    assert train(parts, **settings) == 0
    for run in (whole, parts):
        assert list_steps(run / "checkpoints") == [16, 24]
    assert metrics(parts) == metrics(whole)


@pytest.mark.usefixtures("no_pictures")
def test_the_last_evaluation_decides_about_the_best_after_it_was_broken_off(tmp_path, monkeypatch):
    fixed_scores(monkeypatch)
    settings = {"steps": 16, "eval_every": 8, "checkpoint__keep_latest": 1}
    with monkeypatch.context() as patch:
        send(patch, "evaluate", 2, SIGTERM)
        assert train(tmp_path, **settings) == 143
    assert list_steps(tmp_path / "checkpoints") == [8, 16]
    assert train(tmp_path, **settings) == 0
    assert list_steps(tmp_path / "checkpoints") == [16]


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    copy, finished, capsys, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = max((copy / "checkpoints" / "24").rglob("*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-7])
    assert train(copy, tensorboard=True, wandb="project", profile__start=2, profile__steps=1) == 0
    captured = capsys.readouterr()
    assert (copy / "tensorboard").is_dir()
    assert list(copy.glob("wandb/offline-run-*/*.wandb"))
    assert "traced steps 19 to 19 into" in captured.out
    assert re.search(r"checkpoints/24 is damaged .* moved to .*damaged/24", captured.err)
    assert "after step 16/24" in captured.out
    assert metrics(copy) == metrics(finished)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow  # tests/train/test_sharding.py does, without the command line
def test_a_run_may_change_its_mesh(copy, finished):
    shutil.rmtree(copy / "checkpoints" / "24")
    assert train(copy, mesh__data=2, mesh__fsdp=2) == 0
    for new, old in zip(metrics(copy), metrics(finished), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-3)


def test_another_configuration_is_refused(finished, capsys):
    assert train(finished, seed=3) == 2
    error = capsys.readouterr().err
    assert "another configuration (seed: 0 -> 3)" in error
    assert "give another --run or remove" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_with_settings_that_leave_its_result_and_says_so(copy, finished, capsys):
    changes = {"accumulate": 2, "model__remat": True, "log_every": 2, "eval_every": 8}
    assert train(copy, steps=32, **changes) == 0
    out = capsys.readouterr().out
    for told in (
        "accumulate: 1 -> 2 (equal up to rounding, and to what is drawn",
        "model.remat: False -> True (equal up to rounding)",
        "log_every: 4 -> 2\n",
        "eval_every: 16 -> 8\n",
        "steps: 24 -> 32 (from here on the learning rate is that of a run of the new length)",
        "data.prepared_dir: ",
    ):
        assert f"Continuing {copy} with {told}" in out
    assert out.count("Continuing") == 6
    assert "after step 24/32" in out
    lines, before = metrics(copy), metrics(finished)
    assert lines[: len(before)] == before
    assert [line["step"] for line in lines[len(before) :]] == [26, 28, 30, 32, 32, 32]
    assert main(["train", "digits", *pico.flags(copy, steps=12, **changes)]) == 0
    assert "All steps are done already" in capsys.readouterr().out


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert train(tmp_path) == 2
    assert "is no run folder but holds 'thesis.tex'" in capsys.readouterr().err


def test_two_processes_cannot_share_a_folder(copy, capsys):
    import fcntl

    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train(copy) == 2
    assert "is in use by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("", "config.json cannot be read"),
        ("[1]", "config.json must hold a table of settings, got list"),
        ('{"seed": 1}', "is a run of the task None, but known is classification"),
        ('{"task": "classification", "color": 1}', "config.json cannot be read: unknown setting"),
        ('{"task": "classification", "data": {}}', "config.json cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be_read(copy, capsys, what, message):
    (copy / "config.json").write_text(what)
    assert main(["eval", str(copy)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path, capsys):
    run = tmp_path / "run"
    settings = {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": None}
    assert train(run, **settings) == 1
    error = capsys.readouterr().err
    step = int(re.search(r"(?:loss|grad_norm) is \S+ at step (\d+);", error)[1])
    assert step <= 8
    assert "no checkpoint was saved before it. The same command with --on-nan skip" in error
    assert train(run, on_nan="skip", max_skipped=2, **settings) == 1
    error = capsys.readouterr().err
    assert f"at step {step + 2}, and 2 updates in a row were left out before it" in error
    assert not list_steps(run / "checkpoints")


@pytest.mark.usefixtures("no_pictures")
def test_updates_that_are_not_finite_can_be_left_out(tmp_path, monkeypatch, capsys):
    def sometimes_bad(setup, state, batch):
        new, scalars = original(setup, state, batch)
        bad = (state.step == 5) | (state.step == 6)
        ruined = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), new.params)
        loss = jnp.where(bad, jnp.inf, scalars["loss"])
        return dataclasses.replace(new, params=ruined), scalars | {"loss": loss}

    original = finite.train_step
    monkeypatch.setattr(finite, "train_step", sometimes_bad)
    settings = {"steps": 12, "eval_every": 24, "on_nan": "skip", "max_skipped": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, **settings) == 0
    assert "2 updates up to step 8 were left out" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        send(patch, "put_batch", 6, SIGTERM)  # after the first of the bad ones
        assert train(parts, **settings) == 143
    assert train(parts, **settings) == 0
    lines = [line for line in metrics(whole) if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [0, 2, 0]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert metrics(parts) == metrics(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(parts), final_state(whole))


@pytest.mark.oldest
def test_eval_shows_raw_and_averaged_and_writes_the_confusion(copy, finished, capsys):
    for name in ("confusion.csv", "confusion.png"):
        (copy / name).unlink()
    assert main(["eval", str(copy), "--devices", "4"]) == 0
    assert (copy / "confusion.csv").read_text() == (finished / "confusion.csv").read_text()
    assert (copy / "confusion.png").exists()
    with (copy / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in rows) == 360
    hits = sum(int(row["images"]) for row in rows if row["label"] == row["prediction"])
    assert hits == round(360 * metrics(finished)[-1]["top1"])
    out = capsys.readouterr().out
    for line in metrics(finished)[-2:]:
        assert f"{line['top1']:.2%}" in out
        assert f"{line['top5']:.2%}" in out
    assert "step 24, 360 held-out images" in out


def test_eval_of_an_older_step(finished, capsys):
    assert main(["eval", str(finished), "--step", "16"]) == 0
    assert "step 16" in capsys.readouterr().out


def test_predict_names_what_it_cannot_read(finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    names = ["a.jpg", "cut.png", "text.png", "absent.png", ".", "b.png"]
    assert main(["predict", str(finished), *(str(tmp_path / name) for name in names)]) == 1
    captured = capsys.readouterr()
    assert len(re.findall(r"\d\.\d%", captured.out)) == 2 * 5
    for name in ("cut.png", "text.png", "absent.png"):
        assert f"cannot read image {tmp_path / name}: " in captured.err
    assert captured.err.count("\n") == 4
    assert main(["predict", str(finished), str(tmp_path / "b.png"), "--raw"]) == 0


def test_predict_refuses_an_image_that_unfolds_without_end(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    Image.new("L", (400, 400)).save(tmp_path / "huge.png")
    files = [str(tmp_path / name) for name in ("large.png", "huge.png")]
    assert main(["predict", str(finished), *files]) == 1
    assert capsys.readouterr().err.count("decompression bomb") == 2


def test_predict_never_runs_postscript(finished, tmp_path, capsys):
    (tmp_path / "x.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    assert main(["predict", str(finished), str(tmp_path / "x.eps")]) == 1
    assert "cannot identify image" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_run_without_checkpoint(copy, capsys, command):
    shutil.rmtree(copy / "checkpoints")
    assert main([command, str(copy), *(["x.png"] if command == "predict" else [])]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
