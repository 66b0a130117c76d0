import numpy as np
from PIL import Image

from natjax.train.reporting.curves import plot_curves
from natjax.train.reporting.metrics import Panel

PANELS = (Panel("loss", "loss", "loss"), Panel("share", "accuracy", "top1", percent=True))


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
    plot_curves(lines, PANELS, tmp_path / "c.png", "title")
    assert has_ink(tmp_path / "c.png")


def test_curves_of_a_run_without_lines(tmp_path):
    plot_curves([], PANELS, tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").exists()
