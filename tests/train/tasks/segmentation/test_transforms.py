"""Changes of images and label maps against mmsegmentation's, given its random numbers."""

import json

import goldens
import numpy as np
import pytest

from natjax.train.data import resize
from natjax.train.tasks.segmentation import transforms
from natjax.train.tasks.segmentation.augment import augment, draw_distortion, random_crop
from natjax.train.tasks.segmentation.config import AugmentConfig
from natjax.train.tasks.segmentation.transforms import Distortion, distort

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Recorded(np.random.Generator):
    """A generator that gives recorded numbers, and fails where another call is made."""

    def __init__(self, draws):
        super().__init__(np.random.PCG64())
        self.draws = list(draws)

    def _next(self, names, arguments):
        name, recorded, value = self.draws.pop(0)
        assert name in names
        assert list(arguments) == recorded
        return value

    def random(self):
        return self._next(("random_sample", "rand"), ())

    def integers(self, *bounds):
        bounds = bounds if bounds[0] < 0 or bounds == (2,) else (0, *bounds)
        return self._next(("randint",), bounds)

    def uniform(self, *bounds):
        return self._next(("uniform",), bounds)


def _golden(key):
    return goldens.load("transforms")[key]


def _rgb(key):
    return np.ascontiguousarray(_golden(key)[:, :, ::-1])


def _cases(prefix):
    files = goldens.load("transforms").files
    return [
        key.removesuffix("/draws") for key in files if key.startswith(prefix) and "draws" in key
    ]


def test_fitted_sizes():
    for height, width, *scale, new_height, new_width in _golden("resize/table").tolist():
        assert resize.fitted_size((height, width), tuple(scale)) == (new_height, new_width)


@pytest.mark.parametrize("i", range(4))
def test_resized_pixels(i):
    expected = _rgb(f"pix/bilinear{i}")
    resized = resize.resize_image(_rgb("pix/bgr"), expected.shape[:2])
    np.testing.assert_array_equal(resized, expected)
    labels = resize.resize_nearest(_golden("pix/seg"), expected.shape[:2])
    np.testing.assert_array_equal(labels, _golden(f"pix/nearest{i}"))


def test_normalised_pixels():
    normalised = transforms.normalised(_rgb("pix/bgr"), MEAN, STD)
    np.testing.assert_allclose(normalised, _golden("pix/normalized"), rtol=1e-6, atol=1e-6)


def test_filled_up_labels():
    padded = transforms.pad(_golden("pix/seg"), (64, 64), transforms.IGNORE)
    np.testing.assert_array_equal(padded, _golden("pix/pad64_seg"))


@pytest.mark.parametrize(
    ("key", "by"),
    [
        ("brightness-31.5", Distortion(brightness=-31.5)),
        ("brightness12.25", Distortion(brightness=12.25)),
        ("contrast0.52", Distortion(contrast=0.52)),
        ("contrast1.47", Distortion(contrast=1.47, contrast_first=False)),
        ("saturation0.52", Distortion(saturation=0.52)),
        ("saturation1.47", Distortion(saturation=1.47)),
        ("hue-18", Distortion(hue=-18)),
        ("hue17", Distortion(hue=17)),
    ],
)
def test_single_distortions(key, by):
    np.testing.assert_array_equal(distort(_rgb("pix/bgr"), by), _rgb(f"photo/{key}"))


@pytest.mark.parametrize("case", _cases("photo"))
def test_drawn_distortions(case):
    rng = Recorded(json.loads(str(_golden(f"{case}/draws"))))
    by = draw_distortion(rng)
    assert not rng.draws
    np.testing.assert_array_equal(distort(_rgb("pix/bgr"), by), _rgb(f"{case}/out"))


@pytest.mark.parametrize("case", _cases("segpipe"))
def test_whole_augmentation(case):
    rng = Recorded(json.loads(str(_golden(f"{case}/draws"))))
    how = AugmentConfig(frame=(256, 64), crop=64)
    image, labels = _rgb("segpipe/bgr"), _golden("segpipe/label")
    example = augment(image, labels, how, rng)
    assert not rng.draws
    np.testing.assert_array_equal(example.labels, _golden(f"{case}/label"))
    pixels = transforms.normalised(example.image, MEAN, STD)
    rows, columns = np.ogrid[:64, :64]
    inside = (rows < example.size[0]) & (columns < example.size[1])
    pixels = np.where(inside[:, :, None], pixels, 0)
    np.testing.assert_allclose(pixels, _golden(f"{case}/img"), rtol=1e-5, atol=1e-5)


def test_labels_without_zero():
    raw = np.array([[0, 1, 150]], np.uint8)
    np.testing.assert_array_equal(transforms.without_zero(raw), [[255, 0, 149]])


@pytest.mark.parametrize(
    ("labels", "suits"),
    [
        ([0, 0, 1, 1], True),
        ([0, 0, 0, 0], False),  # one class
        ([0, 0, 0, 1], False),  # three quarters
        ([0, 0, 0, 1, 1], True),
        ([0, 0, 0, 1, 255, 255], False),  # what is ignored does not count
        ([255, 255], False),
    ],
)
def test_crops_that_suit(labels, suits):
    assert transforms.crop_suits(np.array([labels], np.uint8), 0.75) == suits


def test_a_crop_without_choice_is_taken_after_ten_more_tries():
    class Counting(np.random.Generator):
        calls = 0

        def integers(self, bound):
            self.calls += 1
            return self.calls % bound

    rng, labels = Counting(np.random.PCG64()), np.zeros((9, 9), np.uint8)
    image = np.zeros((9, 9, 3), np.uint8)
    how = AugmentConfig(crop=4)
    cropped, _ = random_crop(image, labels, how, rng)
    assert cropped.shape == (4, 4, 3)
    assert rng.calls == 2 * 11
