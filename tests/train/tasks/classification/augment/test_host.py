"""Changes of single images: what is drawn, and what it does to pixels."""

import collections
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from natjax.train.errors import UserError
from natjax.train.tasks.classification.augment.color import jitter
from natjax.train.tasks.classification.augment.crop import (
    middle_box,
    pick_resampling,
    random_box,
    resize_box,
)
from natjax.train.tasks.classification.augment.ops import OPERATIONS
from natjax.train.tasks.classification.augment.pipeline import TrainTransform
from natjax.train.tasks.classification.augment.rand_augment import (
    draw_magnitude,
    fill_color,
    rand_augment,
)
from natjax.train.tasks.classification.config import (
    AugmentConfig,
    ClassificationConfig,
    ImagesConfig,
)
from natjax.train.tasks.classification.policy import Policy, parse_policy

PUBLISHED = "rand-m9-mstd0.5-inc1"
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fits(sample, distribution) -> bool:
    return scipy.stats.kstest(sample, distribution).pvalue > 1e-3


def uniform(low, high):
    return scipy.stats.uniform(low, high - low).cdf


# Crops.


def test_crops_are_uniform_in_area_place_and_logarithm_of_the_ratio(rng):
    boxes = np.array([random_box(6000, 5000, (0.1, 0.5), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert fits(width * height / 30e6, uniform(0.1, 0.5))
    assert fits(np.log(width / height), uniform(math.log(3 / 4), math.log(4 / 3)))
    assert fits(left / (6000 - width), uniform(0, 1))
    assert fits(top / (5000 - height), uniform(0, 1))


def test_crops_of_odd_shapes_stay_inside(rng):
    for width, height in ((1, 1), (3, 900), (900, 3), (224, 224)):
        for _ in range(50):
            left, top, right, bottom = random_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3), rng)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height


def test_what_never_fits_is_the_middle_of_the_nearest_ratio(rng):
    assert random_box(1000, 100, (0.9, 1.0), (3 / 4, 4 / 3), rng) == (433, 0, 566, 100)
    assert middle_box(100, 1000, (3 / 4, 4 / 3)) == (0, 433, 100, 566)
    assert middle_box(110, 100, (3 / 4, 4 / 3)) == (0, 0, 110, 100)


def test_a_crop_sees_nothing_beyond_its_edges(rng):
    pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
    box = (10, 5, 50, 45)
    expected = Image.fromarray(pixels[5:45, 10:50]).resize((16, 16), BICUBIC)
    found = resize_box(Image.fromarray(pixels), box, 16, BICUBIC)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_filters_are_drawn_evenly_or_fixed(rng):
    drawn = collections.Counter(pick_resampling("random", rng) for _ in range(1000))
    assert set(drawn) == {BILINEAR, BICUBIC}
    assert abs(drawn[BICUBIC] - 500) < 60
    assert pick_resampling("bicubic", rng) == BICUBIC


# RandAugment: what is drawn.


def test_the_published_policy():
    assert parse_policy(PUBLISHED) == Policy(magnitude=9.0, std=0.5, layers=2, prob=0.5)
    assert parse_policy("rand-n3-inc1-m2.5").layers == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("augmix-m5", "only policies rand-... are supported, not 'augmix'"),
        ("rand-m9", "only the increasing operations are supported: add inc1"),
        ("rand-m9-inc0", "add inc1"),
        ("rand-inc1", "the magnitude, such as m9, must be there"),
        ("rand-m11-inc1", r"in \[0, 10\]"),
        ("rand-m9-inc1-w0", "'w0' is not supported"),
        ("rand-m9-mstd101-inc1", "mstd must be at most 100: above, timm draws evenly instead"),
        ("rand-m9-inc1-n1.5", "n must be a whole number"),
        ("rand-m9-inc1-", "'' is not supported"),
    ],
)
def test_policies_that_are_not_supported(text, reason):
    with pytest.raises(UserError, match=f"augment.rand_augment must be like rand-mM.*{reason}"):
        ClassificationConfig(
            data=ImagesConfig(name="digits"), augment=AugmentConfig(rand_augment=text)
        )


def test_operations_are_drawn_evenly_and_done_half_of_the_time(rng, monkeypatch):
    done = []
    for name, operation in list(OPERATIONS.items()):
        spy = dict(vars(operation)) | {
            "apply": lambda image, *_, name=name: done.append(name) or image
        }
        monkeypatch.setitem(OPERATIONS, name, type(operation)(**spy))
    image, policy, counts = Image.new("L", (4, 4)), parse_policy(PUBLISHED), []
    for _ in range(3000):
        before = len(done)
        rand_augment(image, policy, "random", 0, rng)
        counts.append(len(done) - before)
    share = np.bincount(counts, minlength=3) / 3000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.03)
    frequencies = collections.Counter(done)
    assert len(frequencies) == len(OPERATIONS) == 15
    assert scipy.stats.chisquare(list(frequencies.values())).pvalue > 1e-3


def test_magnitudes_are_normal_and_clipped(rng):
    policy = parse_policy("rand-m5-mstd0.5-inc1")
    assert fits([draw_magnitude(policy, rng) for _ in range(2000)], scipy.stats.norm(5, 0.5).cdf)
    published = parse_policy(PUBLISHED)
    drawn = np.array([draw_magnitude(published, rng) for _ in range(4000)])
    assert drawn.max() == 10
    assert np.mean(drawn == 10) == pytest.approx(scipy.stats.norm.sf(2), abs=0.008)
    assert np.median(drawn) == pytest.approx(9, abs=0.05)


def test_signs_are_drawn_evenly(rng, monkeypatch):
    seen = []
    operation = OPERATIONS["Rotate"]
    spy = dict(vars(operation)) | {
        "apply": lambda image, degrees, *_: seen.append(degrees) or image
    }
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, type(operation)(**spy))
    policy = Policy(magnitude=9.0, std=0.0, layers=2, prob=1.0)
    for _ in range(500):
        rand_augment(Image.new("L", (2, 2)), policy, "random", 0, rng)
    assert set(seen) == {27.0, -27.0}
    assert abs(np.mean(np.sign(seen))) < 0.12


@pytest.mark.parametrize(
    ("name", "at_0", "at_9", "at_10"),
    [
        ("Rotate", 0, 27, 30),
        ("PosterizeIncreasing", 4, 1, 0),
        ("SolarizeIncreasing", 256, 26, 0),
        ("SolarizeAdd", 0, 99, 110),
        ("ColorIncreasing", 0, 0.81, 0.9),
        ("ContrastIncreasing", 0, 0.81, 0.9),
        ("BrightnessIncreasing", 0, 0.81, 0.9),
        ("SharpnessIncreasing", 0, 0.81, 0.9),
        ("ShearX", 0, 0.27, 0.3),
        ("ShearY", 0, 0.27, 0.3),
        ("TranslateXRel", 0, 0.405, 0.45),
        ("TranslateYRel", 0, 0.405, 0.45),
    ],
)
def test_what_magnitudes_mean(name, at_0, at_9, at_10):
    strength = OPERATIONS[name].strength
    assert [strength(m) for m in (0, 9, 10)] == pytest.approx([at_0, at_9, at_10])


# RandAugment: what operations do, against definitions in NumPy.


def luma(x):
    r, g, b = (x[..., i].astype(int) for i in range(3))
    return ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16).astype(np.uint8)


def gray(x):
    return luma(x) if x.ndim == 3 else x


def blend(base, x, factor):
    """Away from `base`, towards `x` and past it; cut off at the ends and towards 0."""
    base, x = base.astype(np.float32), x.astype(np.float32)
    mixed = base + np.float32(factor) * (x - base)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def stretch(x):
    low, high = int(x.min()), int(x.max())
    scale = 255 / (high - low)
    return np.clip(x * scale - low * scale, 0, 255).astype(np.uint8)


def flatten_histogram(x):
    counts = np.bincount(x.ravel(), minlength=256)
    step = (x.size - counts[np.flatnonzero(counts)[-1]]) // 255
    table = (step // 2 + np.cumsum(counts) - counts) // step
    return np.minimum(table, 255)[x].astype(np.uint8)


def smooth(x):
    out = x.astype(float)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inner = scipy.ndimage.correlate(out, kernel)
    inner = np.floor(inner + 0.5)
    out[1:-1, 1:-1] = inner[1:-1, 1:-1]  # the frame stays
    return out.astype(np.uint8)


def bands(function):
    def over_bands(x, *values):
        if x.ndim == 2:
            return function(x, *values)
        return np.stack([function(x[..., i], *values) for i in range(3)], axis=-1)

    return over_bands


DEFINITIONS = {
    "AutoContrast": (0.0, bands(lambda x, _: stretch(x))),
    "Equalize": (0.0, bands(lambda x, _: flatten_histogram(x))),
    "Invert": (0.0, lambda x, _: 255 - x),
    "PosterizeIncreasing": (2.0, lambda x, _: x // 64 * 64),
    "SolarizeIncreasing": (100.0, lambda x, _: np.where(x < 100, x, 255 - x)),
    "SolarizeAdd": (60.0, lambda x, _: np.where(x < 128, np.minimum(x.astype(int) + 60, 255), x)),
    "BrightnessIncreasing": (-0.5, lambda x, s: blend(np.zeros_like(x), x, 1 + s)),
    "ContrastIncreasing": (
        0.7,
        lambda x, s: blend(np.full_like(x, int(gray(x).mean() + 0.5)), x, 1 + s),
    ),
    "ColorIncreasing": (
        0.7,
        lambda x, s: x if x.ndim == 2 else blend(np.stack([luma(x)] * 3, axis=-1), x, 1 + s),
    ),
    "SharpnessIncreasing": (0.7, bands(lambda x, s: blend(smooth(x), x, 1 + s))),
}
MOVES = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def photo(rng, channels):
    """Smooth enough that interpolation is no lottery."""
    coarse = rng.integers(20, 230, (6, 7, channels), np.uint8)
    image = Image.fromarray(coarse[:, :, 0] if channels == 1 else coarse)
    return image.resize((40, 30), BICUBIC)


def test_every_operation_has_a_definition():
    assert set(DEFINITIONS) | MOVES == set(OPERATIONS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_operations_on_values_do_what_their_definitions_say(name, channels, rng):
    strength, definition = DEFINITIONS[name]
    image = photo(rng, channels)
    found = np.asarray(OPERATIONS[name].apply(image, strength, BILINEAR, 0))
    expected = definition(np.asarray(image), strength)
    assert found.shape == expected.shape
    # A float32 on the edge of a whole number may fall to either side.
    assert np.abs(found.astype(int) - expected).max() <= (1 if "Increasing" in name else 0)
    assert np.mean(found != expected) < 0.01


def test_full_magnitude_posterizes_to_black(rng):
    assert (
        np.asarray(OPERATIONS["PosterizeIncreasing"].apply(photo(rng, 3), 0.0, BILINEAR, 0)).max()
        == 0
    )


def test_enhancement_stops_at_a_tenth(rng):
    image = photo(rng, 3)
    found = OPERATIONS["BrightnessIncreasing"].apply(image, -0.99, BILINEAR, 0)
    np.testing.assert_array_equal(found, blend(np.zeros((30, 40, 3)), np.asarray(image), 0.1))


def source_places(name, strength, width, height):
    """Where the pixel at (row, column) comes from."""
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    if name == "Rotate":  # counter-clockwise about the middle
        angle = math.radians(strength)
        y, x = rows - height / 2, columns - width / 2
        columns = math.cos(angle) * x - math.sin(angle) * y + width / 2
        rows = math.sin(angle) * x + math.cos(angle) * y + height / 2
    elif name == "ShearX":
        columns = columns + strength * rows
    elif name == "ShearY":
        rows = rows + strength * columns
    elif name == "TranslateXRel":
        columns = columns + strength * width
    else:
        rows = rows + strength * height
    return rows - 0.5, columns - 0.5


@pytest.mark.parametrize("strength", [0.2, -0.13])
@pytest.mark.parametrize("name", sorted(MOVES))
def test_operations_that_move_pixels(name, strength, rng):
    strength = strength * 100 if name == "Rotate" else strength
    image, fill = photo(rng, 1), 77
    found = np.asarray(OPERATIONS[name].apply(image, strength, BILINEAR, fill)).astype(float)
    rows, columns = source_places(name, strength, *image.size)
    expected = scipy.ndimage.map_coordinates(
        np.asarray(image, float), (rows, columns), order=1, mode="nearest"
    )
    inside = (rows >= 0) & (rows <= 29) & (columns >= 0) & (columns <= 39)
    outside = (rows < -0.6) | (rows > 29.6) | (columns < -0.6) | (columns > 39.6)
    assert np.abs(found - expected)[inside].max() <= 1
    assert inside.sum() > 400
    assert outside.sum() > 20
    assert set(found[outside]) == {fill}


def test_empty_places_get_the_mean_colour():
    assert fill_color((0.485, 0.456, 0.406)) == (124, 116, 104)
    assert fill_color((0.286,)) == 73
    assert fill_color((1.0,)) == 255


# Colour jitter.


def test_jitter_changes_each_of_three_by_a_bounded_factor(rng):
    """Of a gray image only brightness moves the mean: its factor is uniform on [0.6, 1.4]."""
    image = Image.new("L", (2, 2), 100)
    found = np.array([np.asarray(jitter(image, 0.4, rng))[0, 0] for _ in range(1500)])
    assert found.min() >= 59
    assert found.max() <= 140
    assert fits(found + rng.random(1500), uniform(60, 140))


def test_jitter_changes_saturation_and_contrast(rng):
    image = photo(rng, 3)
    original = np.asarray(image).astype(int)
    spreads, colours = [], []
    for _ in range(200):
        changed = np.asarray(jitter(image, 0.4, rng)).astype(int)
        spreads.append(gray(changed.astype(np.uint8)).std() / gray(original.astype(np.uint8)).std())
        colours.append(np.ptp(changed, axis=2).mean() / np.ptp(original, axis=2).mean())
    assert min(spreads) < 0.7
    assert max(spreads) > 1.2
    assert np.std(np.array(colours) / np.array(spreads)) > 0.1


# All together.


def transform(size=32, channels=3, **settings):
    data = ImagesConfig(name="digits", image_size=size)
    return TrainTransform(augment=AugmentConfig(**settings), data=data, mean=(0.5,) * channels)


FULL = {"crop": "resized", "hflip": 0.5, "rand_augment": PUBLISHED, "color_jitter": 0.4}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (64, 48), (300, 20), (1, 9)])
def test_any_image_becomes_an_example(size, channels, rng):
    image = Image.new("L" if channels == 1 else "RGB", size, 128 if channels == 1 else (1, 2, 3))
    for settings in (FULL, {"crop": "shift", "shift": 2}, {}):
        for _ in range(10):
            pixels = transform(channels=channels, **settings)(image, rng)
            assert pixels.shape == (32, 32, channels)
            assert pixels.dtype == np.uint8


def test_an_example_is_a_function_of_the_image_and_the_stream():
    image = photo(np.random.default_rng(1), 3)
    twice = [transform(**FULL)(image, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_mirror_images_come_as_often_as_asked(rng):
    image = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32) // 4)
    turns = transform(channels=1, hflip=0.3)
    mirrored = [bool(turns(image, rng)[0, 0, 0] > 0) for _ in range(1000)]
    assert np.mean(mirrored) == pytest.approx(0.3, abs=0.05)


def test_jitter_is_left_out_where_rand_augment_is_on(rng):
    image = Image.new("RGB", (32, 32), (100, 150, 200))
    with_both = transform(rand_augment="rand-m9-inc1", color_jitter=0.4)
    alone = transform(rand_augment="rand-m9-inc1")
    for seed in range(20):
        streams = [np.random.default_rng(seed) for _ in range(2)]
        np.testing.assert_array_equal(with_both(image, streams[0]), alone(image, streams[1]))
    assert (transform(color_jitter=0.4)(image, rng) != np.asarray(image)).any()
