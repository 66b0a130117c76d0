"""Boxes, anchors, assignment, sampling and suppression against numbers of mmdet's code."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection import every_nth

from natjax.dense.ops.anchors import anchors_in_padding, anchors_inside, pyramid_anchors
from natjax.dense.ops.assign import Assignment, MaxIoUAssigner
from natjax.dense.ops.boxes import box_giou, box_iou, decode_boxes, encode_boxes, pairwise_iou
from natjax.dense.ops.nms import multiclass_nms, nms
from natjax.dense.ops.sample import in_slots, sample

STRIDES = (4, 8, 16, 32, 64)
RULES = {
    "rpn": MaxIoUAssigner(
        positive_iou=0.7, negative_iou=0.3, match_low_quality=True, lowest_iou=0.3
    ),
    "rcnn": MaxIoUAssigner(
        positive_iou=0.5, negative_iou=0.5, match_low_quality=True, lowest_iou=0.5
    ),
    "cascade0": MaxIoUAssigner(positive_iou=0.5, negative_iou=0.5),
    "cascade1": MaxIoUAssigner(positive_iou=0.6, negative_iou=0.6),
    "cascade2": MaxIoUAssigner(positive_iou=0.7, negative_iou=0.7),
}


@pytest.fixture(scope="module")
def golden():
    arrays = goldens.load("det_ops")
    return {key: arrays[key] for key in arrays.files}


def _sizes(array):
    return [tuple(row) for row in array.tolist()]


def _size(array):
    return jnp.asarray(array, jnp.float32)


def _anchors(golden):
    sizes = _sizes(golden["anchors/feat_sizes"])
    return pyramid_anchors(sizes, STRIDES, scale=8.0, ratios=(0.5, 1.0, 2.0))


def test_anchors(golden):
    expected = np.concatenate([golden[f"anchors/level{i}"] for i in range(5)])
    np.testing.assert_array_equal(_anchors(golden), expected)


def test_anchors_in_padding(golden):
    sizes, padded = _sizes(golden["anchors/valid_sizes"]), _size(golden["anchors/pad_shape"])
    outside = anchors_in_padding(sizes, STRIDES, padded, 3)
    np.testing.assert_array_equal(~outside, golden["anchors/valid"])
    assert 0 < outside.sum() < outside.size


@pytest.mark.parametrize("border", [0.0, 16.0])
def test_anchors_inside(golden, border):
    sizes, padded = _sizes(golden["anchors/feat_sizes"]), _size(golden["anchors/pad_shape"])
    size = _size(golden["anchors/img_shape"])
    inside = anchors_inside(_anchors(golden), size, border)
    inside &= ~anchors_in_padding(sizes, STRIDES, padded, 3)
    np.testing.assert_array_equal(inside, golden[f"anchors/inside_border{border:.0f}"])


def test_iou(golden):
    a, b = jnp.asarray(golden["iou/boxes1"]), jnp.asarray(golden["iou/boxes2"])
    aligned = a[: len(b)]
    assert goldens.error(pairwise_iou(a, b), golden["iou/iou"]) < 1e-6
    assert goldens.error(box_iou(aligned, b), golden["iou/iou_aligned"]) < 1e-6
    assert goldens.error(box_giou(aligned, b), golden["iou/giou_aligned"]) < 1e-6


@pytest.mark.parametrize("i", range(4))
def test_coder(golden, i):
    boxes, targets, deltas = (jnp.asarray(golden[f"coder/{k}"]) for k in ("boxes", "gt", "deltas"))
    stds, size = golden[f"coder/stds{i}"].tolist(), _size(golden["coder/max_shape"])
    per_class = jnp.asarray(golden["coder/deltas_classes"]).reshape(len(boxes), -1, 4)
    decoded = decode_boxes(boxes[:, None], per_class, stds, size).reshape(len(boxes), -1)
    for name, actual in {
        "encode": encode_boxes(boxes, targets, stds),
        "decode": decode_boxes(boxes, deltas, stds),
        "decode_clip": decode_boxes(boxes, deltas, stds, size),
        "decode_classes": decoded,
    }.items():
        assert goldens.error(actual, golden[f"coder/{name}{i}"]) < 1e-6, name


@pytest.mark.parametrize("i", range(4))
def test_coder_in_float64(golden, i, x64):
    boxes, deltas = (jnp.asarray(golden[f"coder/{k}"], jnp.float64) for k in ("boxes", "deltas"))
    size = jnp.asarray(golden["coder/max_shape"], jnp.float64)
    decoded = decode_boxes(boxes, deltas, golden[f"coder/stds{i}"].tolist(), size)
    assert decoded.dtype == jnp.float64
    assert goldens.error(decoded, golden[f"coder/decode_f64_{i}"]) < 1e-12


def _numbered(assignment):
    """The encoding of the goldens: -1 ignored, 0 background, from 1 on objects."""
    background = np.where(assignment.negative, 0, -1)
    return np.where(assignment.positive, np.asarray(assignment.objects) + 1, background)


def _with_objects_in_front(assignment, count):
    pairs = zip(
        (jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool), jnp.zeros(count, bool)),
        assignment,
        strict=True,
    )
    return Assignment(*(jnp.concatenate(pair) for pair in pairs))


@pytest.mark.parametrize("objects", ["", "_nogt"])
@pytest.mark.parametrize("use", RULES)
def test_assign_and_sample(golden, use, objects):
    boxes = _anchors(golden) if use == "rpn" else jnp.asarray(golden["assign/boxes"])
    truth = jnp.asarray(golden["assign/gt"])
    count = 0 if objects else len(truth)
    assignment = RULES[use](
        boxes,
        truth,
        valid=jnp.ones(len(boxes), bool),
        valid_objects=jnp.arange(len(truth)) < count,
    )
    np.testing.assert_array_equal(_numbered(assignment), golden[f"assign/{use}{objects}/gt_inds"])

    full, fraction = (256, 0.5) if use == "rpn" else (512, 0.25)
    if use != "rpn":
        assignment = _with_objects_in_front(assignment, count)
    for number, suffix in ((full, ""), (12, "_small")):
        chosen = sample(
            jax.random.key(0),
            assignment,
            number=number,
            positive_fraction=fraction,
            subset=every_nth,
        )
        slots = in_slots(chosen, number)
        indices, positive, valid = map(np.asarray, slots)
        prefix = f"assign/{use}{objects}"
        np.testing.assert_array_equal(indices[positive], golden[f"{prefix}/pos_inds{suffix}"])
        negative = valid & ~positive
        np.testing.assert_array_equal(indices[negative], golden[f"{prefix}/neg_inds{suffix}"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_nms(golden, threshold, grouped):
    boxes, scores, ids = (jnp.asarray(golden[f"nms/{k}"]) for k in ("boxes", "scores", "ids"))
    kept = nms(
        boxes,
        scores,
        iou_threshold=threshold,
        max_kept=len(boxes),
        groups=ids if grouped else None,
    )
    name = f"nms/{'batched_' if grouped else ''}keep_{threshold}"
    np.testing.assert_array_equal(kept.indices[kept.valid], golden[name])


@pytest.mark.parametrize("i", range(4))
def test_multiclass_nms(golden, i):
    threshold, limit = golden[f"nms/mc{i}_params"].tolist()
    scores = jnp.asarray(golden["nms/mc_scores"])[:, :-1]
    boxes = jnp.asarray(golden["nms/mc_boxes"]).reshape(*scores.shape, 4)
    found = multiclass_nms(
        boxes, scores, score_threshold=threshold, iou_threshold=0.5, max_kept=int(limit)
    )
    expected, count = golden[f"nms/mc{i}_dets"], len(golden[f"nms/mc{i}_labels"])
    np.testing.assert_array_equal(found.valid, np.arange(int(limit)) < count)
    np.testing.assert_array_equal(found.labels[:count], golden[f"nms/mc{i}_labels"])
    np.testing.assert_array_equal(found.boxes[:count], expected[:, :4])
    np.testing.assert_array_equal(found.scores[:count], expected[:, 4])
    assert not np.any(found.boxes[count:])
