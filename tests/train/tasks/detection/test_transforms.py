"""Changes of images with objects against mmdetection's, given its random numbers."""

import dataclasses
import json

import goldens
import numpy as np
import pytest

from natjax.train.data.resize import fitted_size
from natjax.train.tasks.detection.config import AugmentConfig
from natjax.train.tasks.detection.transforms import (
    Cut,
    Plan,
    bucket_of,
    draw_plan,
    draw_scale,
    is_wide,
    least_size,
    move_boxes,
    move_image,
    move_mask,
    ratios,
    within,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PIPES = range(6)


def _golden(key):
    return goldens.load("transforms_det")[key]


def _plan(pipe):
    """What a recorded run of the pipeline has drawn."""
    draws = [value for _, _, value in json.loads(str(_golden(f"{pipe}/draws")))]
    flip, cut, size = draws.pop(0) == "horizontal", None, (60, 90)
    if str(_golden(f"{pipe}/branch")) == "b":
        first = fitted_size(size, tuple(_golden("scales_b")[draws.pop(0)].tolist()))
        height, width, top, left = draws[:4]
        draws = draws[4:]
        cut = Cut(size=first, top=top, left=left, height=height, width=width)
    frame = tuple(_golden("scales_a")[draws.pop(0)].tolist())
    assert not draws
    taken = size if cut is None else (cut.height, cut.width)
    return Plan(size=size, flip=flip, cut=cut, final=fitted_size(taken, frame))


@pytest.mark.parametrize("number", PIPES)
def test_recorded_pipelines(number):
    """Sizes, boxes and masks, and which objects are left; to the bit."""
    pipe = f"pipe{number}"
    plan = _plan(pipe)
    assert plan.final == tuple(_golden(f"{pipe}/img_shape")[:2])
    boxes, here = move_boxes(_golden("gt_bboxes"), plan)
    np.testing.assert_array_equal(boxes[here], _golden(f"{pipe}/gt_bboxes"))
    expected = _golden(f"{pipe}/gt_masks")
    made = np.zeros_like(expected)
    for mask, number in zip(made, np.flatnonzero(here), strict=True):
        mask[: plan.final[0], : plan.final[1]] = move_mask(_golden("gt_masks")[number], plan)
    np.testing.assert_array_equal(made, expected)
    assert made.any(axis=(1, 2)).all()
    assert least_size(plan.final, 32) == expected.shape[1:]
    taken = plan.size if plan.cut is None else (plan.cut.height, plan.cut.width)
    np.testing.assert_array_equal(
        np.tile(ratios(taken, plan.final)[::-1], 2), _golden(f"{pipe}/scale_factor")
    )


@pytest.mark.parametrize("number", PIPES)
def test_recorded_images(number):
    """In the full set of goldens, which has the images; otherwise only their size is known."""
    pipe = f"pipe{number}"
    plan, arrays = _plan(pipe), goldens.load("transforms_det").files
    bgr = _golden("bgr") if "bgr" in arrays else np.zeros((60, 90, 3), np.uint8)
    image = move_image(np.ascontiguousarray(bgr[:, :, ::-1]), plan)
    assert image.shape == tuple(_golden(f"{pipe}/img_shape"))
    if "bgr" in arrays:
        expected = _golden(f"{pipe}/img")[: image.shape[0], : image.shape[1]]
        normalised = (image.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
        np.testing.assert_allclose(normalised, expected.astype(np.float32), atol=2e-3)


def _how(**changes):
    shape = AugmentConfig(
        frame=(133, 80),
        sides=(48, 64, 80),
        crop_sides=(40, 50, 60),
        crop_range=(38, 60),
        buckets=((64, 128), (96, 160)),
    )
    return dataclasses.replace(shape, **changes)


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (70, 70)])
def test_images_masks_and_boxes_move_together(size):
    """A picture of a rectangle stays one of where its box and its mask are."""
    rng = np.random.default_rng(0)
    box = np.array([[20, 30, 50, 55]], np.float32)
    mask = np.zeros(size, np.uint8)
    mask[30:55, 20:50] = 1
    image = np.repeat(255 * mask[:, :, None], 3, axis=2)
    flips, cuts = set(), set()
    for _ in range(40):
        plan = draw_plan(size, draw_scale(_how(), rng), _how(), rng)
        flips.add(plan.flip)
        cuts.add(plan.cut is not None)
        seen = move_mask(mask, plan)
        (moved,), (here,) = move_boxes(box, plan)
        assert seen.shape == plan.final == move_image(image, plan).shape[:2]
        differ = (move_image(image, plan)[:, :, 0] > 127) != seen.astype(bool)
        assert differ.mean() < 0.08
        assert here == seen.any()
        if here:
            rows, columns = np.nonzero(seen)
            outline = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(moved, outline, atol=3)
    assert flips == cuts == {True, False}


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (70, 70), (33, 400)])
def test_draws_stay_within_the_recipe(size):
    """Parts are of the image and of the recipe's sides, and lie as the image does."""
    rng = np.random.default_rng(1)
    how = _how(crop=1.0)
    for _ in range(200):
        scale = draw_scale(how, rng)
        plan = draw_plan(size, scale, how, rng)
        assert scale.side in how.sides
        assert scale.cut_side in how.crop_sides
        cut = plan.cut
        assert cut.size == fitted_size(size, (133, scale.cut_side))
        for part, side in zip((cut.height, cut.width), cut.size, strict=True):
            assert min(side, 38) <= part <= min(side, 60)
        assert 0 <= cut.top <= cut.size[0] - cut.height
        assert 0 <= cut.left <= cut.size[1] - cut.width
        assert cut.height == cut.width or is_wide((cut.height, cut.width)) == is_wide(size)
        assert min(plan.final) <= scale.side
        assert max(plan.final) <= 133


def test_without_cuts_or_mirrors():
    rng = np.random.default_rng(2)
    how = _how(crop=0.0, hflip=0.0)
    plans = [draw_plan((60, 90), draw_scale(how, rng), how, rng) for _ in range(50)]
    assert {plan.cut for plan in plans} == {None}
    assert {plan.flip for plan in plans} == {False}
    assert {plan.final for plan in plans} == {(48, 72), (64, 96), (80, 120)}


def test_boxes_without_area_stay_until_a_cut():
    """As in mmdetection; the model leaves them out."""
    boxes = np.array([[5, 5, 5, 9], [0, 0, 10, 10], [-9, -9, -1, -1]], np.float32)
    plan = Plan(size=(20, 20), final=(40, 40))
    moved, here = move_boxes(boxes, plan)
    assert here.all()
    np.testing.assert_array_equal(moved, [[10, 10, 10, 18], [0, 0, 20, 20], [0, 0, 0, 0]])
    cut = Cut(size=(20, 20), top=0, left=0, height=8, width=20)
    moved, here = move_boxes(boxes, dataclasses.replace(plan, cut=cut, final=(16, 40)))
    assert here.tolist() == [False, True, False]
    np.testing.assert_array_equal(moved[1], [0, 0, 20, 16])


def test_buckets():
    buckets = ((64, 128), (128, 96))
    assert bucket_of([(60, 100), (64, 20)], buckets) == (64, 128)
    assert bucket_of([(100, 60)], buckets) == (128, 64)
    assert bucket_of([(70, 100)], buckets) == (96, 128)
    with pytest.raises(ValueError, match="holds 100 x 100 pixels"):
        bucket_of([(100, 20), (20, 100)], buckets)
    assert within((100, 60), (50, 100)) == (50, 30)
    assert within((10, 20), (50, 100)) == (10, 20)
