"""The loss of segmentation: what it divides by, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.segmentation.loss import pixel_accuracy, pixel_cross_entropy, segmentation_loss

LABELS = np.array([[[0, 2, 255, 1], [1, 255, 2, 0]]], np.uint8)


def _logits(shape=(1, 2, 4, 3)):
    return jax.random.normal(jax.random.key(0), shape)


def _expected(logits, labels):
    logits = np.asarray(logits, np.float64)
    losses = [
        np.log(np.exp(row).sum()) - row[label]
        for row, label in zip(logits.reshape(-1, 3), labels.ravel(), strict=True)
        if label != 255
    ]
    return sum(losses)


def test_ignored_pixels_add_nothing_but_count():
    total, weight = pixel_cross_entropy(_logits(), jnp.asarray(LABELS))
    assert total == pytest.approx(_expected(_logits(), LABELS), rel=1e-6)
    assert weight == 8


def test_logits_are_interpolated_to_the_labels():
    labels = jnp.asarray(np.kron(LABELS, np.ones((1, 2, 2), np.uint8)))
    total, weight = pixel_cross_entropy(jnp.ones((1, 2, 4, 3)), labels)
    assert weight == 32
    assert total == pytest.approx(24 * np.log(3), rel=1e-6)


def test_ignored_pixels_have_no_gradient_whatever_their_logits():
    logits = _logits().at[0, 0, 2].set(jnp.array([1e30, -1e30, 1e3]))

    def loss(logits):
        return pixel_cross_entropy(logits, jnp.asarray(LABELS))[0]

    gradient = jax.grad(loss)(logits)
    assert jnp.isfinite(loss(logits))
    np.testing.assert_array_equal(gradient[0, 0, 2], 0)
    softmax = jax.nn.softmax(logits[0, 0, 0])
    np.testing.assert_allclose(gradient[0, 0, 0], softmax - jnp.array([1.0, 0.0, 0.0]), atol=1e-6)


def test_labels_that_are_no_class_are_not_passed_over_in_silence():
    labels = jnp.asarray(np.where(LABELS == 2, 3, LABELS))
    assert jnp.isnan(pixel_cross_entropy(_logits(), labels)[0])


def test_another_ignored_label():
    labels = jnp.asarray(np.where(LABELS == 255, 7, LABELS), jnp.int32)
    total, _ = pixel_cross_entropy(_logits(), labels, ignore=7)
    assert total == pixel_cross_entropy(_logits(), jnp.asarray(LABELS))[0]


def test_accuracy_counts_ignored_pixels_as_wrong():
    logits = jax.nn.one_hot(jnp.where(LABELS == 255, 0, LABELS), 3)
    assert pixel_accuracy(logits, jnp.asarray(LABELS)) == (6, 8)


def test_both_heads():
    labels, logits, auxiliary = jnp.asarray(LABELS), _logits(), _logits((1, 1, 2, 3))
    total, weight, scalars = segmentation_loss(logits, auxiliary, labels, auxiliary_weight=0.5)
    decode, _ = pixel_cross_entropy(logits, labels)
    more, _ = pixel_cross_entropy(auxiliary, labels)
    assert total == pytest.approx(float(decode + 0.5 * more), rel=1e-6)
    assert weight == 8
    assert scalars["loss_decode"] == (decode, 8)
    assert scalars["loss_auxiliary"] == (0.5 * more, 8)
    alone, _, scalars = segmentation_loss(logits, None, labels)
    assert alone == decode
    assert set(scalars) == {"loss_decode", "accuracy"}


def test_parts_of_a_batch_add_up_to_it():
    logits = _logits((4, 2, 4, 3))
    labels = jnp.asarray(np.concatenate([LABELS, LABELS[:, ::-1], LABELS * 0, LABELS * 0 + 255]))
    whole = pixel_cross_entropy(logits, labels)
    parts = [pixel_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    sums = [sum(float(part[i]) for part in parts) for i in range(2)]
    assert sums == pytest.approx([float(x) for x in whole], rel=1e-6)
