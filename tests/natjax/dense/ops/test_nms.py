"""Suppression equals its definition: any boxes, ties, groups, limits, blocks."""

import functools

import detection
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.ops.nms import multiclass_nms, nms


def _iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    overlap = np.prod(np.maximum(high - low, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return overlap / union if union > 0 else 0


def sequential_nms(boxes, scores, threshold, groups, valid):
    """The definition."""
    kept = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        rivals = (j for j in kept if groups[j] == groups[i])
        if all(_iou(boxes[j], boxes[i]) <= threshold for j in rivals):
            kept.append(i)
    return kept


COUNT = 24


@st.composite
def scenes(draw):
    """Boxes on few pixels with few scores: ties, and overlaps of exactly the threshold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = rng.integers(0, 6, (COUNT, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 5, (COUNT, 2))], axis=1)
    return (
        boxes.astype(np.float32),
        rng.integers(0, 4, COUNT).astype(np.float32),
        rng.integers(0, draw(st.integers(1, 3)), COUNT).astype(np.int32),
        rng.random(COUNT) < draw(st.sampled_from([0.0, 0.1, 0.7, 1.0])),
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _kept(boxes, scores, groups, valid, threshold, max_kept):
    return nms(
        boxes, scores, iou_threshold=threshold, max_kept=max_kept, groups=groups, valid=valid
    )


def _run(scene, threshold, max_kept):
    indices, valid = map(np.asarray, _kept(*scene, threshold, max_kept))
    assert not np.any(indices[~valid])
    return indices[valid].tolist()


@hypothesis.settings(max_examples=200)
@hypothesis.given(scenes(), st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([2, 30]))
def test_equals_the_definition(scene, threshold, max_kept):
    boxes, scores, groups, valid = scene
    expected = sequential_nms(boxes, scores, threshold, groups, valid)
    assert _run(scene, threshold, max_kept) == expected[:max_kept]


@pytest.mark.parametrize("max_kept", [50, 700])
@pytest.mark.parametrize("count", [128, 700])
def test_over_several_blocks(count, max_kept):
    rng = np.random.default_rng(count)
    boxes = detection.random_boxes(rng, (count,))
    scores = rng.integers(0, 200, count).astype(np.float32)
    groups, valid = rng.integers(0, 2, count).astype(np.int32), rng.random(count) < 0.9
    scene = (boxes, scores, groups, valid)
    expected = sequential_nms(boxes, scores, 0.6, groups, valid)
    # Of 700, more boxes than a block holds are kept before the last block.
    assert len(expected) > {128: 60, 700: 400}[count]
    assert _run(scene, 0.6, max_kept) == expected[:max_kept]


@pytest.mark.oldest
def test_equal_scores_go_by_index():
    boxes = jnp.asarray([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 5, 5]])
    kept = nms(boxes, jnp.ones(3), iou_threshold=0.5, max_kept=3)
    assert kept.indices.tolist() == [0, 0, 0]
    assert kept.valid.tolist() == [True, False, False]


def test_in_float64(x64):
    boxes = jnp.asarray([[0.0, 0, 4, 4], [9, 9, 12, 12], [0, 0, 4, 5]])
    kept = nms(boxes, jnp.arange(3.0), iou_threshold=0.5, max_kept=2)
    assert kept.indices.tolist() == [2, 1]


def test_a_chain_is_decided_one_after_the_other():
    """Each box overlaps its neighbors alone, so every other one stays: the longest decision."""
    left = np.arange(100, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 1.9, 0 * left + 1], axis=1)
    kept = nms(jnp.asarray(boxes), jnp.asarray(-left), iou_threshold=0.3, max_kept=100)
    assert kept.indices[kept.valid].tolist() == list(range(0, 100, 2))


def test_no_boxes():
    kept = nms(jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_kept=3)
    assert not kept.valid.any()
    with pytest.raises(ValueError, match="max_kept must be positive; got 0"):
        nms(jnp.zeros((1, 4)), jnp.zeros(1), iou_threshold=0.5, max_kept=0)


@pytest.mark.oldest
def test_batch_on_a_mesh():
    """vmapped and sharded over eight devices: the same, and no boxes are exchanged."""
    rng = np.random.default_rng(0)
    boxes = jnp.asarray(detection.random_boxes(rng, (8, 60)))
    scores = jnp.asarray(rng.random((8, 60), np.float32))
    run = jax.jit(jax.vmap(lambda b, s: nms(b, s, iou_threshold=0.4, max_kept=20)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_batch = jax.NamedSharding(mesh, jax.P("data"))
    sharded = jax.device_put((boxes, scores), over_batch)
    text = run.lower(*sharded).compile().as_text()
    assert "all-gather" not in text
    for ours, alone in zip(run(*sharded), run(boxes, scores), strict=True):
        assert ours.sharding.is_equivalent_to(over_batch, ours.ndim)
        np.testing.assert_array_equal(ours, alone)


def test_candidates_bound_the_work_of_probabilities():
    """Of scores that sum to 1 at most 1 / threshold exceed it, so looking at no more is exact."""
    rng = np.random.default_rng(0)
    boxes = jnp.asarray(detection.random_boxes(rng, (20, 9)))
    scores = jax.nn.softmax(jnp.asarray(rng.normal(0, 2, (20, 9)), jnp.float32))
    options = {"score_threshold": 0.2, "iou_threshold": 0.5, "max_kept": 30}
    few = multiclass_nms(boxes, scores, candidates=20 * 5, **options)
    every = multiclass_nms(boxes, scores, **options)
    for a, b in zip(few, every, strict=True):
        np.testing.assert_array_equal(a, b)
    regions = np.asarray(every.indices)[np.asarray(every.valid)]
    labels = np.asarray(every.labels)[np.asarray(every.valid)]
    picked = np.asarray(scores)[regions, labels]
    np.testing.assert_array_equal(picked, every.scores[: len(picked)])
    assert np.all(np.diff(picked) <= 0)
