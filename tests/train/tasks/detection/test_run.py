"""Whole runs of detection through the command line, with a very small model."""

import csv
import functools
import json

import jax
import numpy as np
import pico
import pytest
from flax import nnx
from PIL import Image
from runs import final_state, metrics

import natjax
from natjax.cli import main
from natjax.train.engine import loop
from natjax.train.tasks.detection import evaluate_weights
from natjax.train.tasks.detection.config import AugmentConfig, DetectionConfig
from natjax.train.tasks.detection.datasets.digit_scenes import write_scenes
from natjax.weights.load import named_params

SETTINGS = {
    "model.name": pico.DETECTOR,
    "steps": 6,
    "batch_size": 8,
    "log_every": 3,
    "checkpoint.every": 3,
    "eval_every": 6,
    "optimizer.warmup_steps": 2,
    "ema_decay": 0.9,
}


def train(run, folder, **settings):
    words = ["train", "detect_demo", "--run", str(run), "--data.name", "coco"]
    words += ["--data.dir", str(folder), "--augment.frame", "64", "64", "--augment.sides", "64"]
    words += ["--augment.buckets", "64", "64"]
    given = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return main(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes of digits in COCO's format."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 24, "val": 6})
    return folder


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A finished run, not to be changed."""
    jax.config.update("jax_disable_most_optimizations", True)  # as the tests compile
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(run, folder) == 0
    return run


def _state(run):
    leaves = jax.tree.leaves_with_path(final_state(run))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_a_run_leaves_scores_detections_and_pictures(finished):
    lines = metrics(finished)
    scores = [line for line in lines if line["kind"] == "eval"]
    assert {line["weights"] for line in scores} == {"raw", "ema"}
    assert scores[0]["images"] == 6
    assert set(scores[0]) >= {"box_ap", "box_ap50", "mask_ap", "mask_ap75"}
    steps = [line for line in lines if line["kind"] == "train"]
    parts = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert set(steps[0]) >= parts | {"accuracy", "positive", "rpn_positive"}
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][name] for name in parts), rel=1e-4)
    for name in ("predictions.png", "curves.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 400
    with (finished / "classes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(map(str, range(10)))
    found = json.loads((finished / "detections.json").read_text())
    assert {frozenset(one) for one in found} <= {
        frozenset(("image_id", "category_id", "bbox", "score", "segmentation"))
    }


def test_an_interrupted_run_goes_on_to_the_same_state(finished, folder, tmp_path, monkeypatch):
    run, put_batch, taken = tmp_path / "run", loop.put_batch, []

    def stopping(*args):
        taken.append(args)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return put_batch(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "put_batch", stopping)
        assert train(run, folder) == 130
    assert train(run, folder) == 0
    expected, state = _state(finished), _state(run)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


def test_eval_and_predict(finished, folder, tmp_path, capsys):
    assert main(["eval", str(finished), "--data.dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "6 held-out images" in shown
    assert "box AP" in shown
    photos = [tmp_path / "photo.png", tmp_path / "wide.png"]
    for path, size in zip(photos, ((50, 70), (40, 80)), strict=True):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    words = ["predict", str(finished), *map(str, photos), str(damaged), "--score", "0"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "damaged.png" in said.err
    for path in photos:
        with Image.open(path) as photo, Image.open(finished / "overlays" / path.name) as drawn:
            assert drawn.size == photo.size
            assert (np.asarray(drawn) != np.asarray(photo)).any()
    assert main(["predict", str(finished), str(photos[0]), "--score", "1.5"]) == 2
    assert "--score must be in [0, 1], got 1.5" in capsys.readouterr().err


@pytest.fixture
def small_images(monkeypatch):
    """Weights by the name of a model see images of 64 pixels: those of 800 take minutes."""
    small = functools.partial(
        DetectionConfig, augment=AugmentConfig(frame=(64, 64), sides=(64,), buckets=((64, 64),))
    )
    monkeypatch.setattr(evaluate_weights, "DetectionConfig", small)


def test_export(finished, tmp_path):
    weights = tmp_path / "weights.pth"
    assert main(["export", str(finished), str(weights)]) == 0
    model = natjax.create_detector(pico.DETECTOR, num_classes=10, weights=weights)
    averages = final_state(finished)["ema"]
    values = named_params(model)
    assert values.keys() == averages.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value.get_value(), averages[name], err_msg=name)


@pytest.mark.usefixtures("small_images")
def test_weights_are_evaluated_by_the_name_of_their_model(folder, tmp_path, capsys):
    """Of other classes they are refused."""
    model = natjax.create_detector(pico.DETECTOR, num_classes=10, rngs=nnx.Rngs(0))
    natjax.save_weights(model, tmp_path / "x.safetensors")
    named = ["--weights", str(tmp_path / "x.safetensors"), "--model", pico.DETECTOR]
    assert main(["eval", *named, "--data.dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "6 held-out images" in shown
    assert "images in 64 x 64" in shown
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    assert main(["predict", str(photo), *named]) == 2
    assert f"must be of a whole {pico.DETECTOR} with 80 classes" in capsys.readouterr().err
    assert main(["eval", *named]) == 2
    assert "--data.dir FOLDER, with images and annotations" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small_images")
def test_predict_by_a_detector_of_coco(tmp_path, capsys):
    """Without data, classes are COCO's."""
    model = natjax.create_detector(pico.DETECTOR, num_classes=80, rngs=nnx.Rngs(0))
    natjax.save_weights(model, tmp_path / "x.safetensors")
    weights = str(tmp_path / "x.safetensors")
    opened = evaluate_weights.published_task(weights, pico.DETECTOR)
    assert opened.task.classes[:2] == ("person", "bicycle")
    assert len(opened.task.classes) == 80
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(photo)
    words = ["predict", str(photo), "--model", pico.DETECTOR, "--weights", weights]
    assert main([*words, "--out", str(out)]) == 0
    assert "objects" in capsys.readouterr().out
    with Image.open(out / "photo.png") as drawn:
        assert drawn.size == (64, 48)
