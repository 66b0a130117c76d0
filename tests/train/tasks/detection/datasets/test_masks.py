"""Masks as COCO writes them, and what must not reach pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_masks

from natjax.train.tasks.detection.datasets.masks import (
    MaskError,
    mask_areas,
    pack_mask,
    pack_pixels,
    unpack_masks,
    unpack_runs,
)

SIZE = (20, 30)


def _runs(mask):
    """Run lengths by their definition: column by column, outside first."""
    runs, inside = [0], 0
    for pixel in mask.T.ravel():
        if pixel == inside:
            runs[-1] += 1
        else:
            runs.append(1)
            inside = pixel
    return runs


masks = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)
)


@given(masks)
def test_all_ways_to_write_a_mask_agree(mask):
    (packed,) = pack_pixels(mask[None])
    size = mask.shape
    assert unpack_runs(packed).tolist() == _runs(mask)
    as_list = pack_mask({"size": list(size), "counts": _runs(mask)}, size)
    as_text = pack_mask({"size": list(size), "counts": packed.decode()}, size)
    for written in (packed, as_list, as_text):
        np.testing.assert_array_equal(unpack_masks([written], size)[0], mask)
    assert mask_areas([packed], size).tolist() == [mask.sum()]


def test_large_differences_of_runs_and_no_masks():
    mask = np.zeros((300, 400), np.uint8)
    mask[5:7, 1] = mask[:, 300] = mask[290, 10] = 1
    (packed,) = pack_pixels(mask[None])
    assert unpack_runs(packed).tolist() == _runs(mask)
    assert unpack_masks([], SIZE).shape == (0, *SIZE)
    assert mask_areas([], SIZE).shape == (0,)


def test_polygons_are_pycocotools():
    """Which pixels a polygon covers is a definition of COCO's; several are one object."""
    polygons = [[2.5, 3, 14, 3, 14, 12.25, 2.5, 12.25], [20, 10, 29, 10, 25, 19.5]]
    packed = pack_mask(polygons, SIZE)
    assert packed == coco_masks.merge(coco_masks.frPyObjects(polygons, *SIZE))["counts"]
    (mask,) = unpack_masks([packed], SIZE)
    assert mask.sum() == coco_masks.area({"size": SIZE, "counts": packed})
    assert mask[5, 10]
    assert mask[12, 25]
    assert not mask[5, 17]


def _counts(counts, size=SIZE):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "must be polygons or run lengths, got None"),
        ([], "must have a polygon"),
        ([[1, 2, 3, 4]], "x and y of 3 points or more, got 4 values"),
        ([[1, 2, 3, 4, 5]], "got 5 values"),
        ([[1, 2, 3, 4, 5, 6, 7]], "got 7 values"),
        ([1, 2, 3, 4, 5, 6], "polygons must be lists of numbers, got 1"),
        ([[1, 2, 3, 4, 5, "6"]], "polygons must be lists of numbers"),
        ([[1, 2, 3, 4, 5, True]], "polygons must be lists of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "must lie in the image"),
        ([[1, 2, 3, 4, 5, float("inf")]], "must lie in the image"),
        ([[1, 2, 3, 4, 61, 5]], r"must lie in the image \(30 x 20\) or near it"),
        ([[0, 0, 30, 20] * 50_000], "outlines must be at most 2,000,000 pixels"),
        ({}, r"image's height and width, \[20, 30\]; got None"),
        (_counts([600], (30, 20)), "got \\[30, 20\\]"),
        (_counts(5), "counts must be a string or a list of whole numbers, got 5"),
        (_counts([599.0, 1]), "counts must be a string or a list"),
        (_counts([599]), "add up to the image's 600 pixels, got 599"),
        (_counts([10**30]), "must be from 0 to the pixels"),
        (_counts([-1, 601]), "must be from 0 to the pixels"),
        (_counts(""), "add up to the image's 600 pixels, got 0"),
        (_counts("é"), "characters 0 to o only"),
        (_counts("~"), "characters 0 to o only"),
        (_counts("P"), "end within a number"),
        (_counts("oooooooooooo0"), "at most 30 bits"),
        (_counts("ooooo4"), "must add up to the image's 600 pixels, got"),
        (_counts("@"), "must not be negative, got -16"),
    ],
)
def test_masks_that_cannot_be_meant(segmentation, message):
    with pytest.raises(MaskError, match=message):
        pack_mask(segmentation, SIZE)


@given(st.text("0123456789:;<=>?@ABCOPQopq~\n\x7fé", max_size=12))
def test_any_text_is_refused_or_fits(text):
    """A mask that fits decodes within its image."""
    try:
        packed = pack_mask(_counts(text), SIZE)
    except MaskError:
        return
    assert unpack_masks([packed], SIZE).shape == (1, *SIZE)
