import numpy as np
import pytest
from PIL import Image

from natjax.train.tasks.classification.pictures import plot_predictions


def has_ink(path) -> bool:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).std() > 5


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
