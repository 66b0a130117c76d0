"""Pictures of a neighborhood."""

import matplotlib
import numpy as np
import pytest

import natjax
from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.visualize.neighborhood import visible_keys

matplotlib.use("agg")


@pytest.mark.parametrize(
    ("size", "query", "options"),
    [
        ((9,), (0,), {"kernel_size": 4, "dilation": 2}),
        ((7, 8), (6, 3), {"kernel_size": (3, 5), "stride": (2, 1)}),
        ((3, 4, 5), (2, 0, 4), {"kernel_size": 3, "is_causal": (True, False, False)}),
    ],
)
def test_visible_keys_are_those_of_the_definition(size, query, options):
    per_axis = [
        {name: value[i] if isinstance(value, tuple) else value for name, value in options.items()}
        for i in range(len(size))
    ]
    windows = [AxisWindow(length=n, **axis) for n, axis in zip(size, per_axis, strict=True)]
    rows = Neighborhood(tuple(windows)).dense_mask()
    expected = rows[np.ravel_multi_index(query, size)].reshape(size)
    np.testing.assert_array_equal(visible_keys(size, query, **options), expected)


def test_each_token_is_a_cell_and_the_query_is_framed():
    axes = natjax.plot_neighborhood((2, 4, 5), (1, 2, 3), kernel_size=(1, 3, 3))
    (cells,) = axes.collections
    colors = [tuple(color) for color in cells.get_facecolors()]
    assert len(colors) == 40
    assert sorted(map(colors.count, set(colors))) == [9, 31]
    (frame,) = axes.patches
    assert frame.get_xy() == (5 + 1 + 3, 2)  # second frame, third row, fourth column


def test_a_photo_is_dimmed_where_the_query_does_not_look():
    photo = np.full((8, 12, 3), 200, np.uint8)
    axes = natjax.plot_neighborhood((4, 6), (0, 0), kernel_size=3, image=photo)
    (shown,) = axes.images
    light = np.isclose(shown.get_array()[..., 0], 200 / 255)
    assert light[:6, :6].all()
    assert light.sum() == 36


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 2, 2, 2), (0, 0, 0, 0)), "size must have one to three axes"),
        (((4, 4), (0, 4)), r"query must be a token of \(4, 4\); got \(0, 4\)"),
        (((4, 4), (0,)), "query must be a token"),
    ],
)
def test_what_is_no_token_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        natjax.plot_neighborhood(*arguments, kernel_size=3)


def test_a_photo_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"multiples of \(4, 4\); got \(9, 8, 3\)"):
        natjax.plot_neighborhood((4, 4), (0, 0), kernel_size=3, image=np.zeros((9, 8, 3)))
