"""Augmentation against timm itself: equal pixels where nothing is random, else distributions.

tests/golden/README.md says how timm's numbers were made. Draws are compared by two-sample tests:
both streams are fixed, so a test that passes always does. One fails where timm's own draws would
differ as much once in a thousand times: with samples of 1000 and more (most are), where the two
distribution functions differ by 0.09 somewhere.
"""

import dataclasses
import functools
import json

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from natjax.train.tasks.classification.augment import mix
from natjax.train.tasks.classification.augment.color import jitter
from natjax.train.tasks.classification.augment.crop import evaluation_view, middle_box, random_box
from natjax.train.tasks.classification.augment.erase import draw_boxes, erase
from natjax.train.tasks.classification.augment.mix import draw_mix, mix_images
from natjax.train.tasks.classification.augment.ops import OPERATIONS
from natjax.train.tasks.classification.augment.pipeline import TrainTransform
from natjax.train.tasks.classification.augment.rand_augment import fill_color, rand_augment
from natjax.train.tasks.classification.config import EraseConfig, ImagesConfig, MixConfig
from natjax.train.tasks.classification.policy import parse_policy
from natjax.train.tasks.classification.recipes import imagenet_augmentation

AUGMENT, TRAINING = goldens.load("timm_augment"), goldens.load("timm_training")
NAMES = json.loads(str(AUGMENT["policy/names"]))
MEAN = (0.485, 0.456, 0.406)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
RECIPE = imagenet_augmentation(mixes=True)


def same_distribution(ours, theirs):
    """Compare two samples of a number; returns for an assertion."""
    return scipy.stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > 1e-3


def same_frequencies(ours, theirs):
    """Compare two tables of counts of the same categories."""
    table = np.stack([np.ravel(ours), np.ravel(theirs)])
    return scipy.stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-3


# RandAugment.


def test_the_operations_are_timms():
    assert list(OPERATIONS) == NAMES


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_give_timms_pixels(name):
    image, fill = Image.fromarray(AUGMENT["ops/image"]), fill_color(MEAN)
    cases, pixels = AUGMENT[f"ops/{name}/case"], AUGMENT[f"ops/{name}/pixels"]
    operation = OPERATIONS[name]
    assert operation.signed == (cases[:, 1].max() == 1)
    for (magnitude, negative, bicubic), expected in zip(cases, pixels, strict=True):
        # The case is kept in float32, and timm was given the double.
        strength = operation.strength(round(float(magnitude), 3)) * (-1 if negative else 1)
        found = operation.apply(image, strength, FILTERS[int(bicubic)], fill)
        np.testing.assert_array_equal(np.asarray(found), expected)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Invert"])
def test_flat_channels_too(name):
    flat = Image.fromarray(AUGMENT["ops/flat"])
    found = OPERATIONS[name].apply(flat, 0.0, FILTERS[0], 0)
    np.testing.assert_array_equal(np.asarray(found), AUGMENT[f"ops/{name}/flat"])


SCALED = [name for name in NAMES if f"ops/{name}/argument" in AUGMENT.files]
ENHANCEMENTS = tuple(
    f"{kind}Increasing" for kind in ("Color", "Contrast", "Brightness", "Sharpness")
)


@pytest.mark.parametrize("name", SCALED)
def test_magnitudes_mean_what_they_mean_in_timm(name):
    """At every quarter from 0 to 10, with both signs."""
    expected = AUGMENT[f"ops/{name}/argument"]
    strengths = np.array([OPERATIONS[name].strength(step / 4) for step in range(41)])
    for sign, row in zip((1, -1), expected, strict=False):
        found = sign * strengths
        if name in ENHANCEMENTS:
            found = np.maximum(0.1, 1 + found)
        np.testing.assert_allclose(found, row, rtol=1e-14)


@functools.cache
def our_policy(count=8000):
    """Operations done (-1: none), their strengths and filters, as the golden has them."""
    rng, done = np.random.default_rng(0), []
    ops = np.full((count, 2), -1)
    strengths, bicubic = np.full((count, 2), np.nan), np.zeros((count, 2), bool)

    def spy(index):
        def apply(image, strength, resampling, fill):
            done.append((index, strength, resampling == FILTERS[1]))
            return image

        return apply

    with pytest.MonkeyPatch.context() as patch:
        for name, operation in list(OPERATIONS.items()):
            apply = spy(NAMES.index(name))
            patch.setitem(OPERATIONS, name, dataclasses.replace(operation, apply=apply))
        policy, image = parse_policy(RECIPE.rand_augment), Image.new("RGB", (2, 2))
        for row in range(count):
            done.clear()
            rand_augment(image, policy, RECIPE.interpolation, (0, 0, 0), rng)
            for place, values in enumerate(done):
                ops[row, place], strengths[row, place], bicubic[row, place] = values
    return ops, strengths, bicubic


def table_of(ops):
    """Counts of what was done to an image: nothing, one operation, or a pair in order."""
    return np.histogramdd(ops, bins=[np.arange(-1.5, 15)] * 2)[0]


def test_operations_are_drawn_as_in_timm():
    ours, theirs = our_policy()[0], AUGMENT["policy/ops"]
    assert same_frequencies(*[np.bincount((x >= 0).sum(axis=1)) for x in (ours, theirs)])
    assert same_frequencies(*[np.bincount(x[x >= 0]) for x in (ours, theirs)])
    assert same_frequencies(table_of(ours), table_of(theirs))


def test_magnitudes_and_signs_are_drawn_as_in_timm():
    """From the arguments of the operations whose strength is a multiple of the magnitude."""
    most = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45}
    most = most | {"TranslateYRel": 0.45} | dict.fromkeys(ENHANCEMENTS, 0.9)
    ops, strengths, _ = our_policy()
    theirs, arguments = AUGMENT["policy/ops"], AUGMENT["policy/arguments"]
    ours_of, theirs_of = [], []
    for name, top in most.items():
        index, offset = NAMES.index(name), 1.0 if name in ENHANCEMENTS else 0.0
        ours_of.append(strengths[ops == index] / top * 10)
        theirs_of.append((arguments[theirs == index] - offset) / top * 10)
    found, expected = np.concatenate(ours_of), np.concatenate(theirs_of)
    assert same_frequencies(*[[(x < 0).sum(), (x > 0).sum()] for x in (found, expected)])
    # float32 has lost the equality of what is clipped.
    assert same_distribution(np.abs(found).round(4), np.abs(expected).round(4))
    assert np.abs(expected).max().round(4) == np.abs(found).max().round(4) == 10


def test_filters_are_drawn_as_in_timm():
    ops, _, bicubic = our_policy()
    theirs, cubic = AUGMENT["policy/ops"], AUGMENT["policy/bicubic"]
    pairs = ((ops, bicubic), (theirs, cubic))
    assert same_frequencies(*[np.bincount(cubic[ops >= 0], minlength=2) for ops, cubic in pairs])


def test_the_fill_is_timms():
    assert fill_color(MEAN) == tuple(AUGMENT["policy/fill"])


# Crops, colour jitter, all of it, and evaluation.


@pytest.mark.parametrize("size", [(500, 375), (900, 180), (40, 400)])
def test_crops_are_drawn_as_in_timm(size):
    width, height = size
    theirs = AUGMENT[f"crop/{width}x{height}"].astype(int)
    rng = np.random.default_rng(0)
    ours = np.array([random_box(*size, RECIPE.scale, RECIPE.ratio, rng) for _ in range(3000)])
    middle = middle_box(*size, RECIPE.ratio)
    given_up = [(boxes == middle).all(axis=1) for boxes in (ours, theirs)]
    assert same_frequencies(*[[(~x).sum(), x.sum()] for x in given_up])
    if width == 900:
        assert 0.2 < given_up[1].mean() < 0.8  # ten tries, then the middle: both happen
    samples = [boxes[~x] for boxes, x in zip((ours, theirs), given_up, strict=True)]
    for place in range(4):
        assert same_distribution(*[x[:, place] for x in samples])
    areas, ratios = zip(*map(area_and_ratio, samples), strict=True)
    assert same_distribution(*areas)
    assert same_distribution(*ratios)


def area_and_ratio(boxes):
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return width * height, width / height


class Scripted(np.random.Generator):
    """Draws an order and factors that are given, the factors by what they change."""

    def __init__(self, order, factors):
        super().__init__(np.random.PCG64())
        self.order, self.left = order, [factors[index] for index in order]

    def permutation(self, count):
        assert count == len(self.order)
        return np.array(self.order)

    def uniform(self, low, high):
        assert (low, high) == (0.6, 1.4)
        return self.left.pop(0)


def test_jitter_gives_timms_pixels_in_every_order():
    image, factors = Image.fromarray(AUGMENT["jitter/image"]), AUGMENT["jitter/factor"]
    orders = AUGMENT["jitter/order"]
    assert len(np.unique(orders, axis=0)) == 6
    for order, expected in zip(orders, AUGMENT["jitter/pixels"], strict=True):
        found = jitter(image, 0.4, Scripted(order.tolist(), factors.tolist()))
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_jitters_factors_are_drawn_as_in_timm():
    rng = np.random.default_rng(0)
    assert same_distribution(AUGMENT["jitter/drawn"], rng.uniform(0.6, 1.4, 3000))


def features(pixels):
    """As tests/golden/make_timm.py has them: means, spread, and which way the image lies."""
    values = pixels.astype(np.float64)
    top, left = values.shape[0] // 2, values.shape[1] // 2
    return [
        *values.mean(axis=(0, 1)),
        values.std(),
        values[:, :left].mean() - values[:, left:].mean(),
        values[:top].mean() - values[top:].mean(),
    ]


def test_the_whole_transform_makes_of_a_photo_what_timms_makes():
    data = ImagesConfig(name="imagenet2012", image_size=32)
    transform = TrainTransform(augment=RECIPE, data=data, mean=MEAN)
    image, rng = Image.fromarray(AUGMENT["whole/image"]), np.random.default_rng(0)
    ours = np.array([features(transform(image, rng)) for _ in range(1500)])
    ours = ours.astype(np.float16)  # as the golden
    for found, expected in zip(ours.T, AUGMENT["whole/features"].T, strict=True):
        assert same_distribution(found, expected)


@pytest.mark.parametrize("case", goldens.cases("timm_augment", "crop_pct"))
def test_evaluation_sees_timms_pixels(case):
    data = ImagesConfig(name="digits", image_size=16, crop_pct=float(AUGMENT[f"{case}/crop_pct"]))
    found = evaluation_view(Image.fromarray(AUGMENT[f"{case}/image"]), data)
    np.testing.assert_array_equal(np.asarray(found), AUGMENT[f"{case}/pixels"])


# Mixup and CutMix.


@functools.cache
def our_mixes(config, count=4000):
    """Own share, whether pasted, and box (top, bottom, left, right; zeros for none) of draws."""
    keys = jax.random.split(jax.random.key(1), count)
    weights, own = jax.jit(jax.vmap(lambda key: draw_mix(key, config, 48, 40)))(keys)
    pastes = np.isin(weights, (0, 1)).all(axis=(1, 2))
    return np.asarray(own), pastes, np.where(pastes[:, None], boxes_of(np.asarray(weights) == 0), 0)


def boxes_of(masks):
    """Top, bottom, left and right of each box; zeros where there is none."""
    ends = []
    for axis in (2, 1):
        along = masks.any(axis=axis)
        first = along.argmax(axis=1)
        ends += [first, first + along.sum(axis=1)]
    return np.stack(ends, axis=1)


def test_mixes_are_drawn_as_in_timm():
    own, pastes, boxes = our_mixes(RECIPE.mix)
    theirs, pasted, drawn = (TRAINING[f"mix/{name}"] for name in ("own", "pastes", "box"))
    assert same_frequencies(*[np.bincount(x, minlength=2) for x in (pastes, pasted)])
    assert same_distribution(own[~pastes], theirs[~pasted])
    # Beta(1, 1) instead of Beta(0.8, 0.8) would pass there, as it differs by 0.03; not its spread.
    spreads = [(x - 0.5) ** 2 for x in (own[~pastes], theirs[~pasted])]
    assert scipy.stats.ttest_ind(*spreads, equal_var=False).pvalue > 1e-3
    # In pixels, since float32 has the shares of equal boxes not quite equal.
    assert same_distribution(*[(x * 48 * 40).round() for x in (own[pastes], theirs[pasted])])
    for ours, expected in zip(boxes[pastes].T, drawn[pasted].T, strict=True):
        assert same_distribution(ours, expected)


def test_batches_are_mixed_as_often_as_in_timm():
    own, pastes, _ = our_mixes(
        MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.6, switch_prob=0.3)
    )
    ours = [(own == 1).sum(), (~pastes).sum(), (pastes & (own < 1)).sum()]
    assert same_frequencies(ours, TRAINING["mix/kinds_of_seldom"])


def test_boxes_of_cutmix_are_as_large_as_timms():
    """For a given share; the largest of many places is the one that no border cuts off."""
    keys = jax.random.split(jax.random.key(2), 64)

    @jax.jit
    def largest(share):
        inside = jax.vmap(lambda key: 1 - mix._outside_of_box(key, share, 224, 160))(keys)
        return jnp.stack([inside.max(axis=axis).sum(axis=1).max() for axis in (2, 1)])

    # Boxes of at most 0.7 of a side: some of 64 middles are far enough from all borders.
    shares, sizes = TRAINING["mix/sizes_share"], TRAINING["mix/sizes"]
    fitting = shares > 0.5
    found = [largest(jnp.float32(share)) for share in shares[fitting]]
    np.testing.assert_array_equal(found, sizes[fitting])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_images_are_timms(name):
    """Of its two forms: floats, and those rounded to whole values that its loader makes."""
    images = np.moveaxis(TRAINING["batch/image"], 1, -1)
    top, bottom, left, right = TRAINING[f"batch/{name}/box"]
    own = np.full(images.shape[1:3], TRAINING[f"batch/{name}/share"], np.float32)
    if name == "cutmix":
        own = np.ones_like(own)
        own[top:bottom, left:right] = 0
    found = mix_images(jnp.asarray(images), jnp.asarray(images[::-1]), jnp.asarray(own))
    expected = np.moveaxis(TRAINING[f"batch/{name}/exact"], 1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    whole = np.moveaxis(TRAINING[f"batch/{name}/whole"], 1, -1)
    np.testing.assert_array_equal(np.rint(found), whole)
    # The weight of the own label is what is left of the own image, here of class 0.
    target = 0.02 + 0.9 * own.mean()
    assert TRAINING[f"batch/{name}/target"][0, 0] == pytest.approx(target, rel=1e-6)


# Random erasing.

ERASES = {
    "large": (224, EraseConfig(prob=1.0)),
    "small": (20, EraseConfig(prob=1.0)),
    "seldom_fits": (40, EraseConfig(prob=1.0, area=(0.5, 1.0), aspect=(0.2, 5.0))),
}


def our_erasures(config, side, count):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: draw_boxes(key, side, side, config).any(axis=0)))(keys)
    )


@pytest.mark.parametrize("name", ERASES)
def test_boxes_are_erased_as_in_timm(name):
    side, config = ERASES[name]
    ours = boxes_of(our_erasures(config, side, 1500))
    theirs = TRAINING[f"erase/{name}"].astype(int)
    fits = [x.any(axis=1) for x in (ours, theirs)]
    assert same_frequencies(*[[(~x).sum(), x.sum()] for x in fits])
    if name == "seldom_fits":
        assert 0.02 < 1 - fits[1].mean() < 0.9  # ten tries, then nothing: both happen
    ours, theirs = (x[fit] for x, fit in zip((ours, theirs), fits, strict=True))
    for found, expected in zip(ours.T, theirs.T, strict=True):
        assert same_distribution(found, expected)
    for measure in (np.multiply, np.divide):
        found, expected = (measure(x[:, 1] - x[:, 0], x[:, 3] - x[:, 2]) for x in (ours, theirs))
        assert same_distribution(found, expected)


def test_images_are_erased_as_often_as_in_timm():
    erased = our_erasures(RECIPE.erase, 6, 20000).any(axis=(1, 2)).sum()
    theirs = int(TRAINING["erase/often"])
    assert same_frequencies([erased, 20000 - erased], [theirs, 20000 - theirs])


def test_several_boxes_are_as_many_and_as_large_and_coloured_as_in_timm():
    config = EraseConfig(prob=1.0, count=3, mode="color")
    images = jnp.zeros((1500, 40, 40, 1))
    found = np.asarray(
        jax.jit(lambda x: erase(x, jnp.arange(1500), jax.random.key(4), config))(images)
    )[..., 0]
    shares = (found != 0).mean(axis=(1, 2))
    assert same_distribution(shares, TRAINING["erase/three_share"])
    colours = np.array([len(np.unique(image[image != 0])) for image in found])
    theirs = TRAINING["erase/three_colours"]
    assert same_frequencies(*[np.bincount(x, minlength=4) for x in (colours, theirs)])
