import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from natjax.train.engine.network import Network
from natjax.train.tasks.classification.metrics import cross_entropy, rank_of_label
from natjax.train.tasks.classification.presets import digits
from natjax.train.tasks.classification.task import Classification, normalize

# A network whose logits are its normalised images, of which the data set has pixel 255 as 255.
IDENTITY = Network(
    lambda: ({}, {}),
    lambda _, statistics, images, **__: (images.reshape(images.shape[0], -1), statistics),
)


def with_network(network, std=1 / 255):
    spec = Classification(digits()).spec
    spec = dataclasses.replace(spec, mean=(0.0,), std=(std,))
    return Classification(digits(), spec, network)


TASK = with_network(IDENTITY)


def batch(rows, labels, mask=None):
    images = jnp.array(rows, jnp.uint8).reshape(len(rows), 1, -1, 1)
    mask = jnp.ones(len(rows), bool) if mask is None else jnp.array(mask)
    return {"image": images, "label": jnp.array(labels, jnp.int32), "mask": mask}


def test_normalize():
    images = jnp.full((1, 1, 1, 3), 51, jnp.uint8)
    out = normalize(images, (0.2, 0.1, 0.0), (1.0, 0.5, 0.1))
    np.testing.assert_allclose(out.ravel(), [0.0, 0.2, 2.0], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_optax(smoothing):
    logits = jax.random.normal(jax.random.key(0), (5, 7))
    labels = jnp.array([0, 6, 3, 3, 1])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 7), smoothing)
    expected = optax.softmax_cross_entropy(logits, targets)
    np.testing.assert_allclose(cross_entropy(logits, labels, smoothing), expected, rtol=1e-5)


def test_rank_of_label():
    logits = jnp.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [jnp.nan, 0.0, 0.0]])
    ranks = rank_of_label(logits, jnp.array([2, 0, 2, 0]))
    np.testing.assert_array_equal(ranks, [1, 0, 2, 3])


def test_a_model_that_says_nothing_scores_nothing():
    ranks = rank_of_label(jnp.full((1, 10), jnp.nan), jnp.array([0]))
    assert int(ranks[0]) == 10


def test_masked_images_do_not_count():
    rows = [[9, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0], [9, 8, 7, 6, 5, 0], [9, 0, 0, 0, 0, 0]]
    whole = TASK.measure({}, {}, batch(rows, [0, 1, 5, 1], [True, True, True, False]))
    assert {name: int(whole[name]) for name in ("images", "top1", "top5")} == {
        "images": 3,
        "top1": 2,
        "top5": 2,
    }
    np.testing.assert_array_equal(whole["label"], [0, 1, 5, -1])
    np.testing.assert_array_equal(whole["guess"], [0, 1, 0, 0])
    alone = TASK.measure({}, {}, batch(rows[:3], [0, 1, 5]))
    assert float(whole["loss"]) == pytest.approx(float(alone["loss"]))


def test_a_guess_is_the_label_where_the_label_wins_and_nowhere_else():
    logits = jnp.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [jnp.nan, 1.0, 0.0], [1.0, jnp.nan, 0.0]])
    task = with_network(Network(lambda: ({}, {}), lambda *_, **__: (logits, {})))
    counts = task.measure({}, {}, batch([[0]] * 4, [0, 1, 0, 0]))
    np.testing.assert_array_equal(counts["guess"], [0, 0, -1, 0])
    assert int(counts["top1"]) == 2


def test_probabilities_sum_to_one():
    rows = TASK.predict({}, {}, batch([[1, 2, 3], [0, 0, 0]], [0, 0]))["probabilities"]
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows[1], 1 / 3, rtol=1e-6)
