"""Several processes that evaluate detections together."""

import json
import os

import numpy as np
import pico
import pytest
from jobs import Job, free_port
from runs import metrics

from natjax.train.tasks.detection.datasets.digit_scenes import write_scenes


def _ended(commands, cache):
    """Run commands side by side, with the very small models."""
    words = [["-m", "pico", *map(str, command)] for command in commands]
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as the tests compile
    with Job(words, os.environ | quick | {"NATJAX_DATA": str(cache)}) as job:
        ended = job.ended(900)
    assert [one.code for one in ended] == [0] * len(commands), ended
    return ended


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """Both take the whole of every batch; the last batch is not full."""
    folder, run = tmp_path / "scenes", tmp_path / "run"
    folder.mkdir()
    write_scenes(folder, {"train": 8, "val": 6})
    shape = [
        "--augment.frame",
        "64",
        "64",
        "--augment.sides",
        "64",
        "--augment.buckets",
        "64",
        "64",
    ]
    data = ["--data.name", "coco", "--data.dir", folder]
    settings = {"model__name": pico.DETECTOR, "steps": 2, "batch_size": 4}
    settings |= {
        "eval_every": 2,
        "checkpoint__every": 2,
        "log_every": 2,
        "optimizer__warmup_steps": 1,
    }
    command = ["train", "detect_demo", *data, *shape, *pico.flags(run, **settings)]
    place = [
        "--distributed.coordinator",
        f"127.0.0.1:{free_port()}",
        "--distributed.processes",
        "2",
    ]
    pair = [[*command, *place, "--distributed.process", str(index)] for index in range(2)]
    _ended(pair, tmp_path / "cache")
    together = json.loads((run / "detections.json").read_text())
    scores = [line for line in metrics(run) if line["kind"] == "eval"][-1]
    assert scores["images"] == 6

    _ended([["eval", run]], tmp_path / "cache")
    alone = json.loads((run / "detections.json").read_text())
    assert len(alone) > 0
    keys = ("image_id", "category_id")
    assert [[one[key] for key in keys] for one in alone] == [
        [one[key] for key in keys] for one in together
    ]
    for key in ("bbox", "score"):
        np.testing.assert_allclose(
            [one[key] for one in alone], [one[key] for one in together], rtol=1e-4, atol=1e-3
        )
