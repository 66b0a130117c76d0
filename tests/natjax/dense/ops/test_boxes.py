"""Boxes and masks: what holds beyond the goldens."""

import detection
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.ops.boxes import box_giou, decode_boxes, encode_boxes, pairwise_iou
from natjax.dense.ops.masks import mask_targets, paste_masks


def test_decode_undoes_encode():
    rng = np.random.default_rng(0)
    boxes, targets = (jnp.asarray(detection.random_boxes(rng, (50,), least=4)) for _ in range(2))
    stds = (0.1, 0.1, 0.2, 0.2)
    back = decode_boxes(boxes, encode_boxes(boxes, targets, stds), stds)
    np.testing.assert_allclose(back, targets, atol=1e-3)


def test_half_precision_deltas_move_boxes_in_float32():
    boxes = jnp.asarray([[1000.0, 1000.0, 1001.0, 1001.0]])
    moved = decode_boxes(boxes, jnp.zeros((1, 4), jnp.bfloat16), (1.0,) * 4)
    assert moved.dtype == jnp.float32
    np.testing.assert_array_equal(moved, boxes)


def test_deltas_beyond_float_range_stay_finite():
    boxes = jnp.asarray([[0.0, 0.0, 8.0, 8.0]])
    grown = decode_boxes(boxes, jnp.asarray([[0.0, 0.0, 1e4, -1e4]]), (1.0,) * 4)
    assert grown[0].tolist() == pytest.approx([-246, 3.936, 254, 4.064])


def test_overlap_of_boxes_without_area_is_zero_and_its_gradient_finite():
    point = jnp.asarray([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(point, point).tolist() == [[0.0]]
    gradient = jax.grad(lambda b: jnp.sum(box_giou(b, point)))(point)
    assert np.isfinite(gradient).all()


def test_giou_of_boxes_apart_pulls_them_together():
    box, target = jnp.asarray([0.0, 0.0, 2.0, 2.0]), jnp.asarray([6.0, 0.0, 8.0, 2.0])
    assert float(box_giou(box, target)) == pytest.approx(-0.5)
    assert jax.grad(box_giou)(box, target)[2] > 0


@pytest.mark.parametrize("stds", [(1.0, 1.0), (1.0, 1.0, 0.0, 1.0)])
def test_bad_stds(stds):
    boxes = jnp.ones((1, 4))
    with pytest.raises(ValueError, match="stds must be four positive numbers"):
        encode_boxes(boxes, boxes, stds)


def test_a_pasted_mask_gives_its_targets_back():
    """A mask that is 1 on its left half: pasted, then resampled in the same box."""
    mask = jnp.zeros((1, 28, 28)).at[:, :, :14].set(1.0)
    box = jnp.asarray([[10.0, 6.0, 66.0, 62.0]])
    canvas = paste_masks(mask, box, (70, 90)) >= 0.5
    assert canvas.sum() == 28 * 56
    again = mask_targets(canvas, box, jnp.zeros(1, jnp.int32), size=28)
    np.testing.assert_array_equal(again, mask > 0.5)


def test_a_box_without_area_pastes_nothing():
    box = jnp.asarray([[4.0, 4.0, 4.0, 9.0]])
    pasted = paste_masks(jnp.ones((1, 28, 28)), box, (12, 12))
    assert not pasted.any()
