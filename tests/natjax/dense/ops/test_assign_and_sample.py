"""Assignment by its rules on small scenes; samples that are random and pure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.ops.assign import Assignment, MaxIoUAssigner
from natjax.dense.ops.sample import Sampled, in_slots, random_subset, sample

RULE = MaxIoUAssigner(positive_iou=0.7, negative_iou=0.3)
LENIENT = MaxIoUAssigner(positive_iou=0.7, negative_iou=0.3, match_low_quality=True, lowest_iou=0.3)


def _assign(rule, boxes, objects, valid=None, valid_objects=None):
    boxes, objects = jnp.asarray(boxes, jnp.float32), jnp.asarray(objects, jnp.float32)
    return rule(
        boxes,
        objects,
        valid=jnp.ones(len(boxes), bool) if valid is None else jnp.asarray(valid),
        valid_objects=jnp.ones(len(objects), bool)
        if valid_objects is None
        else jnp.asarray(valid_objects),
    )


def test_thresholds():
    """IoU 1, exactly 0.7, 0.5, exactly 0.3 and 0.2 with an object of 10 x 10."""
    boxes = [[0, 0, 10, height] for height in (10, 7, 5, 3, 2)]
    found = _assign(RULE, boxes, [[0, 0, 10, 10]])
    assert found.positive.tolist() == [True, True, False, False, False]
    assert found.negative.tolist() == [False, False, False, False, True]


def test_the_first_of_equal_objects_and_the_last_of_equal_claims():
    boxes = [[0, 0, 10, 10]]
    objects = [[0, 0, 10, 8], [0, 0, 8, 10]]
    assert _assign(RULE, boxes, objects).objects.tolist() == [0]
    assert _assign(LENIENT, boxes, objects).objects.tolist() == [1]


def test_low_quality_matches():
    boxes = [[0, 0, 10, 5], [0, 5, 10, 10], [20, 20, 30, 22]]
    objects = [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert not _assign(RULE, boxes, objects).positive.any()
    found = _assign(LENIENT, boxes, objects)
    assert found.positive.tolist() == [True, True, False]  # 0.2 is below lowest_iou
    assert found.negative.tolist() == [False, False, True]


def test_what_does_not_count_changes_nothing():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]
    objects = [[0, 0, 10, 10], [50, 50, 60, 60]]
    found = _assign(LENIENT, boxes, objects, [False, True, True], [True, False])
    assert found.positive.tolist() == [False, True, False]
    assert found.negative.tolist() == [False, False, True]


@pytest.mark.parametrize("count", [0, 2])
def test_without_objects_all_is_background(count):
    objects = np.zeros((count, 4))
    found = _assign(LENIENT, [[0, 0, 5, 5]], objects, None, np.zeros(count, bool))
    assert not found.positive.any()
    assert found.negative.all()


@pytest.mark.parametrize("rule", [RULE, LENIENT])
def test_objects_without_area_get_nothing(rule):
    found = _assign(rule, [[0, 0, 5, 5], [3, 3, 3, 3]], [[3, 3, 3, 3]])
    assert not found.positive.any()


def test_random_subset_is_uniform_and_pure():
    candidates = jnp.asarray([True, False, True, True, True, True, False])
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.vmap(lambda key: random_subset(key, candidates, jnp.int32(2), 3))
    chosen = np.asarray(draw(keys))
    np.testing.assert_array_equal(chosen, draw(keys))
    assert (chosen.sum(axis=1) == 2).all()
    assert not chosen[:, [1, 6]].any()
    # Each of five with chance 2 / 5: five standard deviations of 3000 draws are 134.
    assert np.abs(chosen.sum(axis=0)[[0, 2, 3, 4, 5]] - 1200).max() < 134


@pytest.mark.parametrize("number", [0, 4, 5, 6])
def test_all_where_there_are_fewer(number):
    candidates = jnp.asarray([True] * 5 + [False] * 3)
    chosen = random_subset(jax.random.key(1), candidates, jnp.int32(number), 6)
    assert chosen.sum() == min(number, 5)
    assert not chosen[5:].any()


def test_background_fills_up():
    """Two of at most three positive: the rest of twelve is background."""
    positive = jnp.arange(40) < 2
    assignment = Assignment(jnp.zeros(40, jnp.int32), positive, ~positive)
    chosen = sample(jax.random.key(0), assignment, number=12, positive_fraction=0.25)
    assert chosen.positive.sum() == 2
    assert chosen.negative.sum() == 10
    assert not (chosen.negative & positive).any()


def test_slots():
    positive = jnp.asarray([False, True, False, False, True])
    negative = jnp.asarray([True, False, False, True, False])
    slots = in_slots(Sampled(positive, negative), 6)
    assert slots.indices.tolist() == [1, 4, 0, 3, 0, 0]
    assert slots.positive.tolist() == [True, True, False, False, False, False]
    assert slots.valid.tolist() == [True] * 4 + [False] * 2
    assert in_slots(Sampled(positive, negative), 3).indices.tolist() == [1, 4, 0]
