"""Resizing of position biases."""

import goldens
import numpy as np
import pytest

from natjax.nn.position_bias import resize_rpb


def table(*shape, dtype=np.float64):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def plain(image, height, width):
    """Cubic convolution written out, one output and one tap at a time."""
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = (row + 0.5) * image.shape[0] / height - 0.5
            x = (column + 0.5) * image.shape[1] / width - 0.5
            for i in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    value = image[
                        min(max(i, 0), image.shape[0] - 1), min(max(j, 0), image.shape[1] - 1)
                    ]
                    out[row, column] += kernel(y - i) * kernel(x - j) * value
    return out


def kernel(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


@pytest.mark.parametrize(
    ("old", "new"), [((13, 13), (21, 21)), ((21, 21), (13, 13)), ((3, 5), (7, 4)), ((1, 1), (3, 3))]
)
def test_plain_definition(old, new):
    rpb = table(2, *old)
    found = resize_rpb(rpb, new)
    for head in range(2):
        np.testing.assert_allclose(found[head], plain(rpb[head], *new), atol=1e-14)


@pytest.mark.parametrize("case", goldens.cases("torch_resize", "table"))
def test_pytorchs_own_numbers(case):
    table, expected = (goldens.load("torch_resize")[f"{case}/{x}"] for x in ("table", "resized"))
    found = resize_rpb(table, expected.shape[1:])
    np.testing.assert_allclose(found, expected, atol=1e-16)  # of values of about 0.02


def test_equal_size_is_the_table_itself():
    rpb = table(2, 13, 13, dtype=np.float32)
    assert resize_rpb(rpb, (13, 13)) is rpb


def test_constants_are_kept_and_the_middle_stays():
    np.testing.assert_allclose(resize_rpb(np.full((1, 13, 13), 3.0), (21, 21)), 3.0, atol=1e-14)
    rpb = table(1, 13, 13)
    assert resize_rpb(rpb, (21, 21))[0, 10, 10] == pytest.approx(rpb[0, 6, 6])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    assert resize_rpb(table(1, 3, 3, dtype=dtype), (5, 5)).dtype == dtype
