import io

import numpy as np
import pytest
from PIL import Image

from natjax.train import transforms
from natjax.train.config import DataConfig
from natjax.train.datasets import get_spec

RNG = np.random.default_rng(0)


def test_png_loses_nothing():
    pixels = RNG.integers(0, 256, (5, 7), np.uint8)
    decoded = transforms.decode(transforms.encode_png(pixels), 1)
    np.testing.assert_array_equal(np.asarray(decoded), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_gray_or_colour(mode, channels):
    pixels = transforms.to_pixels(transforms.with_channels(Image.new(mode, (6, 4)), channels))
    assert pixels.shape == (4, 6, channels)
    assert pixels.dtype == np.uint8


def test_transparent_pixels_become_black():
    image = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    assert transforms.to_pixels(transforms.with_channels(image, 3)).max() == 0


def test_sixteen_bits_keep_their_brightness():
    image = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    assert transforms.to_pixels(transforms.with_channels(image, 1)).max() == 128


def test_square_takes_the_middle():
    pixels = np.zeros((4, 10), np.uint8)
    pixels[:, 3:7] = 200
    middle = np.asarray(transforms.square(Image.fromarray(pixels), 4))
    assert middle.min() >= 190


def test_pad_puts_the_odd_pixel_below_and_right():
    padded = transforms.pad_to(np.ones((1, 2, 1), np.uint8), 4)[:, :, 0]
    np.testing.assert_array_equal(np.argwhere(padded), [[1, 1], [1, 2]])


def test_shift_moves_by_every_amount_and_keeps_the_size():
    pixels = np.zeros((5, 5, 1), np.uint8)
    pixels[2, 2] = 1
    places = {
        tuple(np.argwhere(transforms.random_shift(pixels, 1, RNG)[:, :, 0])[0]) for _ in range(200)
    }
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (300, 200), (1, 9)])
def test_a_spec_takes_images_of_any_size(name, size):
    spec = get_spec(DataConfig(name=name))
    image = Image.new("L", size, 128)
    assert spec.eval_transform(image, 32).shape == (32, 32, spec.channels)
    assert spec.train_transform(image, 32, RNG).shape == (32, 32, spec.channels)


def test_fashion_mnist_keeps_its_own_pixels():
    pixels = RNG.integers(0, 256, (28, 28), np.uint8)
    out = get_spec(DataConfig(name="fashion_mnist")).eval_transform(
        Image.open(io.BytesIO(transforms.encode_png(pixels))), 32
    )
    np.testing.assert_array_equal(out[2:30, 2:30, 0], pixels)
    assert out.sum() == pixels.sum()
