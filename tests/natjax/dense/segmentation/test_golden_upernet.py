"""UPerNet against numbers of the official code on mmsegmentation."""

import functools

import golden_upernet
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.dense.segmentation.inference import multi_scale, sliding_window, whole_image
from natjax.dense.segmentation.loss import segmentation_loss

VALUE, DOUBLE = 1e-5, 1e-10
# Official float32 and float64 differ by 4e-5. The goldens are float64, rounded to float32.
GRADIENT = {jnp.float32: 1e-4, jnp.float64: 1e-6}
# Gradients that are 0 but for rounding (goldens' README) are measured against the largest.
FLOOR = 1e-3


def _has(path, key):
    if not path.exists():
        return False
    with np.load(path) as file:
        return key in file.files


def _names(part="", key="config"):
    """Models whose golden file has an array; slow unless the committed one has it."""
    return [
        pytest.param(name, marks=() if is_committed else pytest.mark.slow)
        for name in golden_upernet.NAMES
        for is_committed in [_has(goldens.COMMITTED / f"{name}{part}.npz", key)]
        if is_committed or goldens.golden_files(f"{name}{part}.npz")
    ]


def _train(name, dtype):
    """Values and gradients of a training step, and the statistics after it."""
    model = golden_upernet.model(name, dtype)
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    arrays = goldens.load(name)
    images = golden_upernet.nhwc(arrays["train/input"]).astype(dtype)
    labels = jnp.asarray(arrays["train/label"][:, 0])

    def loss(params, images):
        model = nnx.merge(graph, params, statistics, copy=True)
        logits, auxiliary = model.heads(images, nnx.Rngs(0))
        total, weight, scalars = segmentation_loss(
            logits, auxiliary, labels, auxiliary_weight=model.config.auxiliary_weight
        )
        after = nnx.state(model, nnx.BatchStat)
        return total / weight, (logits, auxiliary, scalars, after)

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(step)(params, images)


def _difference(actual, expected, floor=0.0):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), floor)


@pytest.mark.oldest
@pytest.mark.parametrize("name", _names())
def test_training_step(name):
    (total, (logits, auxiliary, scalars, after)), gradients = _train(name, jnp.float32)
    _check_values(name, VALUE, "", total, logits, auxiliary, scalars)
    _check_gradients(name, GRADIENT[jnp.float32], *gradients)
    _check_statistics(name, after)


@pytest.mark.parametrize("name", _names())
def test_training_step_in_float64(name, x64):
    (total, (logits, auxiliary, scalars, _)), gradients = _train(name, jnp.float64)
    assert logits.dtype == auxiliary.dtype == total.dtype == jnp.float64
    _check_values(name, DOUBLE, "64", total, logits, auxiliary, scalars)
    _check_gradients(name, GRADIENT[jnp.float64], *gradients)


def _check_values(name, tolerance, suffix, total, logits, auxiliary, scalars):
    arrays = goldens.load(name)
    for key, value in (("logits", logits), ("aux_logits", auxiliary)):
        expected = golden_upernet.nhwc(arrays[f"train/{key}{suffix}"])
        assert goldens.error(value, expected) < tolerance, key
    means = {key: float(value / weight) for key, (value, weight) in scalars.items()}
    for key, value in {
        "total": float(total),
        "decode.loss_ce": means["loss_decode"],
        "aux.loss_ce": means["loss_auxiliary"],
    }.items():
        assert value == pytest.approx(float(arrays[f"train/loss/{key}{suffix}"]), rel=tolerance)
    accuracy = float(arrays["train/loss/decode.acc_seg"])
    assert 100 * means["accuracy"] == pytest.approx(accuracy, rel=1e-6)


def _check_gradients(name, tolerance, params, images):
    expected = goldens.under(f"{name}_grads", "train/grad/param")
    expected = golden_upernet.to_ours(expected)
    actual = golden_upernet.named(params)
    largest = max(np.max(np.abs(gradient)) for gradient in expected.values())
    for key, gradient in expected.items():
        assert _difference(actual[key], gradient, FLOOR * largest) < tolerance, key
    first = golden_upernet.nhwc(goldens.load(f"{name}_grads")["train/grad/input0"])
    assert _difference(images[:1], first) < tolerance


def _check_statistics(name, after):
    """Running statistics after the step; those of the laterals from the official maps.

    (The files' own ``after`` was written before the step.)
    """
    before = golden_upernet.to_ours(goldens.under(name, "param"))
    after = {key: np.asarray(value) for key, value in golden_upernet.named(after).items()}
    for key, value in after.items():
        assert np.all(value != before[key]), key
    for i in range(3):
        module = f"decode_head.lateral_convs.{i}"
        x = np.asarray(goldens.load(name)[f"train/feat{i}"], np.float64).transpose(0, 2, 3, 1)
        x = (x @ before[f"{module}.conv.kernel"][0, 0]).reshape(-1, 8)
        for statistic, batch in (("mean", x.mean(0)), ("var", x.var(0, ddof=1))):
            key = f"{module}.bn.{statistic}"
            assert _difference(after[key], 0.9 * before[key] + 0.1 * batch) < VALUE, key


@pytest.mark.parametrize("name", _names())
def test_evaluation_uses_running_statistics(name):
    arrays, model = goldens.load(name), golden_upernet.model(name)
    before = golden_upernet.named(nnx.state(model, nnx.BatchStat))
    logits, auxiliary = nnx.jit(lambda model, x: model.heads(x))(
        model, golden_upernet.nhwc(arrays["train/input"])
    )
    assert goldens.error(logits, golden_upernet.nhwc(arrays["eval/logits"])) < VALUE
    assert goldens.error(auxiliary, golden_upernet.nhwc(arrays["eval/aux_logits"])) < VALUE
    after = golden_upernet.named(nnx.state(model, nnx.BatchStat))
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])


def _inference(name):
    """The network on its images' pixels, the arrays, the first image, the size of the result."""
    graph, state = nnx.split(golden_upernet.model(name))
    arrays = goldens.load(f"{name}_infer")

    def network(images):
        return nnx.merge(graph, state)(images)

    image = golden_upernet.nhwc(arrays["whole/input"])
    return network, arrays, image, tuple(map(int, arrays["whole/ori_shape"]))


def _check_probabilities(actual, arrays, key):
    expected = golden_upernet.nhwc(arrays[f"{key}/prob_sub2"])
    assert goldens.error(actual[:, ::2, ::2], expected) < VALUE
    assert np.allclose(actual.sum(-1), 1)
    if f"{key}/pred" in arrays.files:
        # A few pixels have two classes that differ by rounding.
        wrong = np.argmax(np.asarray(actual[0]), -1) != arrays[f"{key}/pred"]
        assert wrong.sum() <= 5


@pytest.mark.parametrize("name", _names())
def test_whole_image(name):
    network, arrays, image, size = _inference(name)
    probabilities = jax.jit(lambda x: whole_image(network, x, size))(image)
    _check_probabilities(probabilities, arrays, "whole")
    if "whole/logits_at_input" in arrays.files:
        expected = golden_upernet.nhwc(arrays["whole/logits_at_input"])
        assert goldens.error(jax.jit(network)(image), expected) < VALUE


@pytest.mark.parametrize("name", _names())
def test_sliding_window(name):
    network, arrays, image, size = _inference(name)
    window, stride = (tuple(map(int, row)) for row in arrays["slide/crop_stride"])
    run = functools.partial(sliding_window, network, size=size, window=window, stride=stride)
    _check_probabilities(jax.jit(run)(image), arrays, "slide")


@pytest.mark.parametrize("name", _names("_infer", "aug/input2"))
def test_scales_and_flips(name):
    network, arrays, image, size = _inference(name)
    scaled = [image, golden_upernet.nhwc(arrays["aug/input2"])]
    run = functools.partial(whole_image, network, size=size)
    _check_probabilities(jax.jit(lambda x: multi_scale(run, x))(scaled), arrays, "aug")


@pytest.mark.parametrize("name", _names())
def test_flip(name):
    network, arrays, image, size = _inference(name)
    run = functools.partial(whole_image, network, size=size)
    plain, both = jax.jit(lambda x: (run(x), multi_scale(run, [x])))(image)
    flipped = 2 * both - plain
    expected = golden_upernet.nhwc(arrays["whole/prob_flip_sub2"])
    assert goldens.error(flipped[:, ::2, ::2], expected) < VALUE


@pytest.mark.parametrize("part", ["", "_grads", "_infer"])
def test_committed_selection_is_a_part_of_the_full_set(part):
    full = goldens.load(f"upernet_dinats{part}")
    with np.load(goldens.COMMITTED / f"upernet_dinats{part}.npz") as committed:
        for key in committed.files:
            np.testing.assert_array_equal(committed[key], full[key])
