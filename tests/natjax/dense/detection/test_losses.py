"""Losses against mmdet's, and what they do with entries that do not count."""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.detection import losses


def _golden(name):
    arrays = goldens.under("det_ops", f"loss/{name}")
    # The values are divided by these; the mask loss is a mean.
    divisor = {"rpn_cls": 17, "cls": 17, "l1": 24, "smooth_l1": 24, "giou": 24}
    return arrays, divisor.get(name, arrays["target"].size)


def _check(name, loss, pred, golden_gradient=None):
    arrays, divisor = _golden(name)
    value, gradient = jax.value_and_grad(lambda x: loss(x) / divisor)(jnp.asarray(pred))
    assert float(value) == pytest.approx(float(arrays["value"]), rel=1e-6)
    expected = arrays["grad64"] if golden_gradient is None else golden_gradient
    assert goldens.error(gradient, expected) < 2e-6


def test_binary_cross_entropy():
    arrays, _ = _golden("rpn_cls")
    pred = arrays["pred"][:, 0]
    mask = jnp.asarray(arrays["weight_or_label"] > 0)
    assert set(np.unique(arrays["weight_or_label"])) <= {0.0, 1.0}
    targets = jnp.asarray(arrays["target"] == 0)  # 0 is an object
    _check(
        "rpn_cls",
        lambda x: losses.binary_cross_entropy(x, targets, mask),
        pred,
        arrays["grad64"][:, 0],
    )


def test_cross_entropy():
    arrays, _ = _golden("cls")
    mask = jnp.asarray(arrays["weight_or_label"] > 0)
    labels = jnp.asarray(arrays["target"], jnp.int32)
    _check("cls", lambda x: losses.cross_entropy(x, labels, mask), arrays["pred"])


@pytest.mark.parametrize(("name", "beta"), [("l1", 0.0), ("smooth_l1", 1 / 9)])
def test_l1(name, beta):
    arrays, _ = _golden(name)
    mask = jnp.asarray(arrays["weight_or_label"][:, 0] > 0)
    targets = jnp.asarray(arrays["target"])
    _check(name, lambda x: losses.smooth_l1(x, targets, mask, beta=beta), arrays["pred"])


def test_giou():
    arrays, _ = _golden("giou")
    mask = jnp.asarray(arrays["weight_or_label"][:, 0] > 0)
    targets = jnp.asarray(arrays["target"])
    _check("giou", lambda x: 10 * losses.giou_loss(x, targets, mask), arrays["pred"])


def test_mask_loss():
    arrays, _ = _golden("mask")
    labels = jnp.asarray(arrays["weight_or_label"], jnp.int32)
    targets = jnp.asarray(arrays["target"] > 0.5)
    mask = jnp.ones(targets.shape, bool)

    def loss(x):
        return losses.binary_cross_entropy(losses.select_class(x, labels), targets, mask)

    _check("mask", loss, arrays["pred"])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_what_does_not_count_may_be_anything(beta):
    """NaN and infinite targets of empty places reach neither value nor gradient."""
    mask = jnp.asarray([True, False, False])
    targets = jnp.asarray([[0.0, 0, 2, 2], [jnp.nan] * 4, [-jnp.inf] * 4])

    def loss(x):
        distance = losses.smooth_l1(x, targets, mask, beta=beta)
        return distance + losses.giou_loss(x, targets, mask)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray([[0.0, 0, 1, 1]] * 3))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not gradient[1:].any()


def test_sums_without_weight_count_nothing():
    found = {"a": (jnp.float32(6), jnp.float32(3)), "b": (jnp.float32(0), jnp.float32(0))}
    assert float(losses.mean_loss(found)) == 2
