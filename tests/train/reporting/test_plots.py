import numpy as np
import pytest
from PIL import Image

from natjax.train.reporting.plots import plot_curves, plot_predictions


def has_ink(path) -> bool:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).std() > 5


def test_curves(tmp_path):
    lines = [
        {"kind": "train", "step": s, "loss": 1 / s, "accuracy": 0.5, "learning_rate": 0.1}
        for s in range(1, 9)
    ]
    lines[3] |= {"loss": None, "accuracy": None}  # every update was left out
    lines += [
        {"kind": "eval", "step": 8, "weights": weights, "loss": 0.5, "top1": 0.9}
        for weights in ("raw", "ema")
    ]
    plot_curves(lines, tmp_path / "c.png", "title")
    assert has_ink(tmp_path / "c.png")


def test_curves_of_a_run_without_lines(tmp_path):
    plot_curves([], tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 11])
def test_predictions(tmp_path, channels, count):
    rng = np.random.default_rng(0)
    plot_predictions(
        rng.integers(0, 256, (count, 32, 32, channels), np.uint8),
        np.zeros(count, np.int32),
        rng.dirichlet(np.ones(3), count),
        ("a", "b", "c"),
        tmp_path / "p.png",
        title="title",
    )
    assert has_ink(tmp_path / "p.png")
