import numpy as np
import pytest
from PIL import Image

from natjax.train.data import images
from natjax.train.tasks.classification import presets
from natjax.train.tasks.classification.datasets.registry import get_spec

RNG = np.random.default_rng(0)


def test_png_loses_nothing():
    pixels = RNG.integers(0, 256, (5, 7), np.uint8)
    decoded = images.decode(images.encode_png(pixels), 1)
    np.testing.assert_array_equal(np.asarray(decoded), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_gray_or_colour(mode, channels):
    pixels = images.to_pixels(images.with_channels(Image.new(mode, (6, 4)), channels))
    assert pixels.shape == (4, 6, channels)
    assert pixels.dtype == np.uint8


def test_transparent_pixels_become_black():
    image = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    assert images.to_pixels(images.with_channels(image, 3)).max() == 0


def test_sixteen_bits_keep_their_brightness():
    image = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    assert images.to_pixels(images.with_channels(image, 1)).max() == 128


def test_the_view_of_evaluation_is_the_middle():
    pixels = np.zeros((4, 10), np.uint8)
    pixels[:, 3:7] = 200
    middle = images.center_view(Image.fromarray(pixels), 4)
    assert np.asarray(middle).min() == 200


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 90)])
@pytest.mark.parametrize(("side", "crop_pct"), [(224, 0.875), (384, 1.0)])
def test_the_view_of_evaluation_is_the_published_one(size, side, crop_pct):
    """Resize the short side to floor(side / crop_pct), bicubic, and cut out the middle."""
    photo = Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), np.uint8))
    short = {224: 256, 384: 384}[side]
    scaled = [short if n == min(size) else int(short * n / min(size)) for n in size]
    left, top = (round((n - side) / 2) for n in scaled)
    expected = photo.resize(scaled, Image.Resampling.BICUBIC)
    expected = expected.crop((left, top, left + side, top + side))
    found = images.center_view(photo, side, crop_pct)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_long_strip_does_not_unfold():
    strip = Image.new("L", (1, 5_000_000), 7)
    assert images.center_view(strip, 32).size == (32, 32)


def test_a_border_is_a_part_of_the_short_side():
    framed = images.add_border(Image.new("L", (28, 56), 9), 2 / 28)
    assert framed.size == (32, 60)
    assert np.asarray(framed).sum() == 9 * 28 * 56
    assert images.add_border(framed, 0.0) is framed


def test_shift_moves_by_every_amount_and_keeps_the_size():
    pixels = np.zeros((5, 5), np.uint8)
    pixels[2, 2] = 1
    image, places = Image.fromarray(pixels), set()
    for _ in range(200):
        moved = np.asarray(images.random_shift(image, 1, RNG))
        assert moved.shape == (5, 5)
        places.add(tuple(np.argwhere(moved)[0].tolist()))
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_fashion_mnist_keeps_its_own_pixels():
    pixels = RNG.integers(0, 256, (28, 28), np.uint8)
    data = presets.fashion_mnist().data
    image = images.decode(images.encode_png(pixels), 1)
    framed = images.add_border(image, get_spec(data).border)
    out = np.asarray(images.center_view(framed, data.image_size))
    np.testing.assert_array_equal(out[2:30, 2:30], pixels)
    assert out.sum() == pixels.sum()
