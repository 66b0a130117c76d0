"""Changes of whole batches inside the step: what is drawn and what it does, on any mesh alike."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from natjax.train.tasks.classification.augment.erase import draw_boxes, erase
from natjax.train.tasks.classification.augment.mix import draw_mix, mix_images
from natjax.train.tasks.classification.config import EraseConfig, MixConfig

SIDE = 40
BOTH = MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0)


def keys(count):
    return jax.random.split(jax.random.key(7), count)


@functools.cache
def mixes(config, count=2000):
    """Weights of the own image [N, H, W] and of the own label [N] of many draws."""
    draw = jax.jit(jax.vmap(lambda key: draw_mix(key, config, SIDE, SIDE)))
    return [np.asarray(x) for x in draw(keys(count))]


# Mixup and CutMix.


def test_the_share_of_mixup_is_beta():
    weights, own = mixes(MixConfig(mixup_alpha=0.8))
    assert scipy.stats.kstest(own, scipy.stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weights.min(axis=(1, 2)), own)
    np.testing.assert_array_equal(weights.max(axis=(1, 2)), own)


def test_cutmix_pastes_a_box_and_weighs_labels_by_what_it_covers():
    weights, own = mixes(MixConfig(cutmix_alpha=1.0))
    assert set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_allclose(own, weights.mean(axis=(1, 2)), atol=1e-6)
    inside = weights == 0
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    for along in (rows, columns):  # in one piece
        assert (np.abs(np.diff(along.astype(int), axis=1)).sum(axis=1) <= 2).all()


def test_cutmix_boxes_are_distributed_as_defined():
    """Share uniform (Beta(1, 1)), sides by its root, middle anywhere, cut off at the border."""
    _, own = mixes(MixConfig(cutmix_alpha=1.0))
    rng, expected = np.random.default_rng(0), []
    for share in rng.beta(1.0, 1.0, 4000):
        half = int(SIDE * math.sqrt(1 - share)) // 2
        low, high = np.clip(rng.integers(0, SIDE, 2)[:, None] + [-half, half], 0, SIDE)
        expected.append(1 - (low[1] - low[0]) * (high[1] - high[0]) / SIDE**2)
    assert scipy.stats.ks_2samp(own, expected).pvalue > 1e-3


def test_how_often_at_all_and_which_of_the_two():
    weights, own = mixes(dataclasses.replace(BOTH, prob=0.6, switch_prob=0.3))
    left = own == 1
    assert left.mean() == pytest.approx(0.4, abs=0.04)
    assert (weights[left] == 1).all()
    pasted = (weights[~left] == 0).any(axis=(1, 2))
    assert pasted.mean() == pytest.approx(0.3, abs=0.05)


def test_off_is_off():
    assert not MixConfig().enabled
    assert not dataclasses.replace(BOTH, prob=0.0).enabled
    assert BOTH.enabled


def test_blending():
    images = jnp.array([[10, 200]], jnp.uint8).reshape(1, 1, 2, 1)
    partners = jnp.array([[30, 0]], jnp.uint8).reshape(1, 1, 2, 1)
    own = jnp.array([[0.25, 1.0]])
    np.testing.assert_array_equal(mix_images(images, partners, own).ravel(), [25.0, 200.0])


# Random erasing.

ALWAYS = EraseConfig(prob=1.0)


@functools.cache
def masks(config, side=SIDE, count=1500):
    return np.asarray(
        jax.jit(jax.vmap(lambda key: draw_boxes(key, side, side, config).any(axis=0)))(keys(count))
    )


def test_erased_boxes_are_distributed_as_defined():
    """Area uniform on 2 % to 33 %, aspect even in its logarithm, any place; ten tries to fit."""
    side = 200
    found = masks(ALWAYS, side, 1000)
    rows, columns = found.any(axis=2), found.any(axis=1)
    np.testing.assert_array_equal(found, rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    rng, boxes = np.random.default_rng(0), []
    while len(boxes) < 3000:
        area = rng.uniform(0.02, 1 / 3) * side**2
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < side and w < side:
            boxes.append((h, w))
    h, w = np.array(boxes).T
    assert scipy.stats.ks_2samp(heights * widths, h * w).pvalue > 1e-3
    assert scipy.stats.ks_2samp(heights / widths, h / w).pvalue > 1e-3
    for along, size in ((rows, heights), (columns, widths)):
        place = (along.argmax(axis=1) + 0.5) / (side - size + 1)
        assert scipy.stats.kstest(place, scipy.stats.uniform().cdf).pvalue > 1e-3


def test_how_often_images_are_erased():
    erased = masks(EraseConfig(prob=0.25)).any(axis=(1, 2))
    assert erased.mean() == pytest.approx(0.25, abs=0.04)


def test_several_boxes_share_the_area():
    three = masks(dataclasses.replace(ALWAYS, count=3)).mean(axis=(1, 2))
    assert three.max() <= 0.35
    # The middle of 2 % and 33 %, less what overlaps.
    assert 0.14 < three.mean() < 0.177


def test_a_box_that_never_fits_erases_nothing():
    assert not masks(dataclasses.replace(ALWAYS, area=(1.0, 1.0), aspect=(9.0, 9.0))).any()


@pytest.mark.parametrize("mode", ["pixel", "color", "zero"])
def test_what_boxes_are_filled_with(mode):
    config = EraseConfig(prob=0.5, mode=mode)
    images = jnp.full((400, 16, 16, 3), 9.0)
    found = np.asarray(
        jax.jit(lambda x: erase(x, jnp.arange(400), jax.random.key(3), config))(images)
    )
    filled = (found != 9).all(axis=-1)
    assert (filled == (found != 9).any(axis=-1)).all()
    values = found[filled]
    if mode == "zero":
        assert (values == 0).all()
        return
    if mode == "color":
        values = np.unique(values, axis=0)
        assert len(values) == filled.any(axis=(1, 2)).sum()
    sample = values.ravel()[:4000]
    assert scipy.stats.kstest(sample, scipy.stats.norm().cdf).pvalue > 1e-3


def test_erasing_depends_on_the_row_not_on_the_place():
    images, key = jnp.ones((8, 12, 12, 1)), jax.random.key(0)
    erased = jax.jit(lambda rows: erase(images[: len(rows)], rows, key, ALWAYS))
    whole, some = erased(jnp.arange(8)), erased(jnp.array([6, 1, 3]))
    np.testing.assert_array_equal(some, whole[np.array([6, 1, 3])])
