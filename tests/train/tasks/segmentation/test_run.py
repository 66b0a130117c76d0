"""Whole runs of segmentation through the command line, with a very small model."""

import csv
import os
import shutil

import jax
import numpy as np
import pico
import pytest
from flax import nnx
from jobs import Job, free_port
from PIL import Image
from runs import final_state, metrics

import natjax
from natjax.cli import main
from natjax.train.checkpoint.checkpointer import list_steps
from natjax.train.engine import loop
from natjax.weights.load import named_params

SETTINGS = {
    "model.name": pico.SEGMENTOR,
    "augment.crop": 32,
    "steps": 8,
    "batch_size": 8,
    "log_every": 4,
    "checkpoint.every": 4,
    "eval_every": 8,
    "optimizer.warmup_steps": 2,
}


def train(run, folder, **settings):
    words = ["train", "segment_demo", "--run", str(run), "--data.name", "label_maps"]
    words += ["--data.dir", str(folder), "--augment.frame", "32", "32"]
    given = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return main(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two halves, a class each, in two sizes."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "classes.txt").write_text("dark\nbright\nnowhere\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            height, width = (28, 40) if i % 2 else (40, 28)
            label = (np.arange(width) > rng.integers(8, width - 8)).astype(np.uint8)
            label = np.broadcast_to(label, (height, width))
            noise = rng.integers(0, 60, (height, width, 3))
            pixels = (160 * label[:, :, None] + noise).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
            Image.fromarray(label).save(folder / "labels" / split / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A finished run, not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests compile
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(run, folder) == 0
    return run


def _state(run):
    return {name: np.asarray(x) for name, x in _flat(final_state(run)).items()}


def _flat(items):
    leaves = jax.tree.leaves_with_path(items)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_a_run_leaves_scores_pictures_and_statistics(finished):
    lines = metrics(finished)
    scores = [line for line in lines if line["kind"] == "eval"]
    assert {line["weights"] for line in scores} == {"raw", "ema"}
    assert scores[0]["images"] == 6
    assert set(scores[0]) >= {"miou", "macc", "aacc"}
    steps = [line for line in lines if line["kind"] == "train"]
    assert set(steps[0]) >= {"loss", "loss_decode", "loss_auxiliary", "accuracy"}
    assert steps[0]["loss"] == pytest.approx(steps[0]["loss_decode"] + steps[0]["loss_auxiliary"])
    for name in ("predictions.png", "curves.png", "confusion.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 400
    with (finished / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["dark", "bright", "nowhere"]
    assert rows[2]["iou"] in ("nan", "0.00")
    state = _state(finished)
    counts = [x for name, x in state.items() if name.endswith("num_batches']")]
    assert {int(x) for x in counts} == {8}


def test_a_run_that_was_cut_off_goes_on_to_the_same_state(finished, folder, tmp_path, monkeypatch):
    """From the last checkpoint, two steps before; and with data workers, which change nothing."""
    run, put_batch, taken = tmp_path / "run", loop.put_batch, []

    def stopping(*args):
        taken.append(args)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return put_batch(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "put_batch", stopping)
        assert train(run, folder) == 130
    assert list_steps(run / "checkpoints") == [4]
    assert train(run, folder, data__workers=1) == 0
    expected, state = _state(finished), _state(run)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert metrics(run) == metrics(finished)


def test_evaluation_by_two_processes_and_by_workers_is_that_of_one(
    finished, tmp_path, compilation_cache, capsys
):
    """To the pixel: of images in two sizes, which two processes share."""
    expected = (finished / "confusion.csv").read_text()
    runs = [shutil.copytree(finished, tmp_path / name) for name in ("workers", "pair")]
    for run in runs:
        (run / "confusion.csv").unlink()
    assert main(["eval", str(runs[0]), "--data.workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert (runs[0] / "confusion.csv").read_text() == expected
    place = ["--distributed.coordinator", f"127.0.0.1:{free_port()}", "--distributed.processes"]
    words = ["-m", "pico", "eval", str(runs[1]), *place, "2", "--distributed.process"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    with Job([[*words, str(process)] for process in range(2)], environment) as job:
        ended = job.ended()
    assert [one.code for one in ended] == [0, 0], ended
    assert (runs[1] / "confusion.csv").read_text() == expected
    assert ended[0].out.endswith(shown)
    assert "mIoU" not in ended[1].out


@pytest.mark.slow
def test_devices_and_parts_change_rounding_alone(finished, folder, tmp_path):
    """Statistics are those of the batch over all devices; pixels weigh the parts of a batch."""
    spread = tmp_path / "spread"
    assert train(spread, folder, mesh__data=2, mesh__fsdp=2) == 0
    one, many = _losses(finished), _losses(spread)
    np.testing.assert_allclose(one, many, rtol=2e-4)
    # A norm sees a part of a batch at a time, so this run is another one.
    parts = tmp_path / "parts"
    assert train(parts, folder, accumulate=2) == 0
    assert _losses(parts)[0] == pytest.approx(one[0], rel=0.2)


def _losses(run):
    return [line["loss"] for line in metrics(run) if line["kind"] == "train"]


def test_overlays(finished, folder, tmp_path, capsys):
    photo = folder / "images" / "val" / "0.png"
    (tmp_path / "none.png").write_text("no picture")
    words = ["predict", str(finished), str(photo), str(photo), str(tmp_path / "none.png")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0-2.png", "0.png"]
    captured = capsys.readouterr()
    assert "cannot read image" in captured.err
    assert "none.png" in captured.err


def test_weights_of_a_run_are_those_of_its_checkpoint(finished, tmp_path):
    out = tmp_path / "x.pth"
    assert main(["export", str(finished), str(out), "--raw"]) == 0
    model = natjax.create_segmentor(pico.SEGMENTOR, num_classes=3, kernel_size=5, weights=out)
    state = _state(finished)
    for name, param in named_params(model).items():
        kind = (
            "statistics" if name.rpartition(".")[2] in ("mean", "var", "num_batches") else "params"
        )
        expected = state[f"['{kind}']['{name}']"]
        np.testing.assert_array_equal(param.get_value(), expected, err_msg=name)


def test_scores_of_weights(folder, tmp_path, capsys):
    model = natjax.create_segmentor(pico.SEGMENTOR, num_classes=3, rngs=nnx.Rngs(0))
    natjax.save_weights(model, tmp_path / "x.pth", naming="official")
    words = ["eval", "--weights", str(tmp_path / "x.pth"), "--data.dir", str(folder)]
    assert main([*words, "--model", pico.SEGMENTOR]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown
    assert "bright" in shown
    assert main([*words, "--model", pico.NAME, "--multi-scale"]) == 2
    assert "left out but for segmentors" in capsys.readouterr().err
