"""Batch normalisation and the convolutions of the heads."""

import golden_upernet
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from natjax.dense.layers import BatchNorm, ConvModule

OPTIONS = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def _norm(channels, **options):
    return BatchNorm(channels, **OPTIONS | options, rngs=nnx.Rngs(0))


def _batch(shape, mean=0.0):
    return jax.random.normal(jax.random.key(0), shape) * 3 + mean


def test_training_normalises_by_the_batch_and_moves_the_running_statistics():
    x, norm = _batch((4, 3, 5, 2), mean=7.0), _norm(2)
    flat = np.asarray(x, np.float64).reshape(-1, 2)
    out = norm(x, train=True)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(out).reshape(-1, 2), expected, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    assert norm.num_batches[...] == 1


def test_evaluation_normalises_by_the_running_statistics_and_leaves_them():
    x, norm = _batch((2, 3, 3, 2)), _norm(2)
    norm.mean[...], norm.var[...] = jnp.array([1.0, -1.0]), jnp.array([4.0, 0.25])
    norm.scale[...], norm.bias[...] = jnp.array([2.0, 1.0]), jnp.array([0.0, 3.0])
    out = norm(x, train=False)
    expected = (np.asarray(x) - [1, -1]) / np.sqrt(np.array([4, 0.25]) + 1e-5) * [2, 1] + [0, 3]
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert norm.num_batches[...] == 0
    assert norm.mean[...].tolist() == [1, -1]


def test_a_mean_far_from_0_leaves_the_variance_exact():
    x, norm = _batch((8, 4, 4, 3), mean=1e4), _norm(3)
    out = norm(x, train=True)
    assert np.std(np.asarray(out), axis=(0, 1, 2)) == pytest.approx(1, abs=1e-3)


def test_half_precision_is_normalised_in_float32():
    x, norm = _batch((4, 4, 4, 2), mean=50.0).astype(jnp.bfloat16), _norm(2, dtype=jnp.bfloat16)
    out = norm(x, train=True)
    assert out.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    exact = _norm(2)(x.astype(jnp.float32), train=True)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


def test_gradients_pass_through_the_batch_statistics():
    """Central differences in float64, of a sum that the statistics take part in."""
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(1), (3, 2, 2, 2), jnp.float64)
        x = jax.random.normal(jax.random.key(2), (3, 2, 2, 2), jnp.float64)
        direction = jax.random.normal(jax.random.key(3), x.shape, jnp.float64)

        def run(x):
            norm = _norm(2, dtype=jnp.float64, param_dtype=jnp.float64)
            return jnp.sum(weights * norm(x, train=True))

        step = 1e-5
        numeric = (run(x + step * direction) - run(x - step * direction)) / (2 * step)
        assert jnp.vdot(jax.grad(run)(x), direction) == pytest.approx(float(numeric), rel=1e-7)


@pytest.mark.oldest
def test_statistics_are_those_of_the_batch_over_all_devices():
    x = _batch((8, 4, 4, 3)) * jnp.arange(1.0, 9)[:, None, None, None]
    graph, state = nnx.split(_norm(3))

    def run(x):
        norm = nnx.merge(graph, state, copy=True)
        return norm(x, train=True), nnx.state(norm, nnx.BatchStat)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    alone, together = jax.jit(run)(x), jax.jit(run)(spread)
    assert len(together[0].sharding.device_set) == 8
    for one, all_ in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, all_, rtol=2e-5, atol=2e-6)


def test_one_value_a_channel_cannot_train():
    norm = _norm(2)
    with pytest.raises(ValueError, match=r"two values a channel .* got \(1, 1, 1, 2\)"):
        norm(jnp.ones((1, 1, 1, 2)), train=True)
    assert norm(jnp.ones((1, 1, 1, 2)), train=False).shape == (1, 1, 1, 2)


def test_masked_rows_do_not_count():
    x, norm, alone = _batch((6, 3, 3, 2)), _norm(2), _norm(2)
    mask = jnp.array([True, False, True, True, False, False])
    out = norm(x, train=True, mask=mask)
    expected = alone(x[mask], train=True)
    np.testing.assert_allclose(out[mask], expected, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], alone.mean[...], rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], alone.var[...], rtol=1e-5)
    nothing = _norm(2)(x, train=True, mask=jnp.zeros(6, bool))
    assert jnp.isfinite(nothing).all()


def test_conv_module_parts():
    options = OPTIONS | {"rngs": nnx.Rngs(0)}
    plain, full = ConvModule(3, 4, 3, norm=False, **options), ConvModule(3, 4, 3, **options)
    assert plain.conv.bias is not None
    assert full.conv.bias is None
    x = _batch((2, 5, 6, 3))
    assert full(x, train=True).min() == 0
    linear = ConvModule(3, 4, 3, norm=False, relu=False, **options)
    assert linear(x, train=True).min() < 0


def test_kernels_start_with_the_deviation_of_fan_out():
    module = ConvModule(64, 128, 3, **OPTIONS, rngs=nnx.Rngs(0))
    assert np.std(module.conv.kernel[...]) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def _below(name, module):
    """The arrays of a module of a golden file, by the rest of their keys."""
    arrays, start = goldens.load(name), f"{module}."
    return {key.removeprefix(start): arrays[key] for key in arrays.files if key.startswith(start)}


@pytest.mark.slow
@pytest.mark.skipif(
    "s0.bbox_feats" not in goldens.load("cascade_dinat_train").files,
    reason="needs the full set of goldens",
)
def test_statistics_of_the_official_box_head():
    """A chain of four, on the region features of the first stage of a Cascade Mask R-CNN."""
    prefix = "roi_head.bbox_head.0.shared_convs"
    options = OPTIONS | {"rngs": nnx.Rngs(0)}
    convs = nnx.List([ConvModule(size, 5, 3, **options) for size in (6, 5, 5, 5)])
    ours = golden_upernet.to_ours(_below("cascade_dinat", f"param/{prefix}"))
    golden_upernet.set_arrays(convs, ours)
    x = golden_upernet.nhwc(goldens.load("cascade_dinat_train")["s0.bbox_feats"])
    for conv in convs:
        x = conv(x, train=True)
    after = golden_upernet.to_ours(_below("cascade_dinat_grads", f"after/{prefix}"))
    statistics = golden_upernet.named(nnx.state(convs, nnx.BatchStat))
    assert statistics.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_allclose(statistics[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_gradients_of_kernels_are_not_rounded_to_the_dtype_of_the_products():
    """Devices add up their shares of them: in bfloat16, that would round once a device."""
    conv = ConvModule(3, 4, 3, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.bfloat16)

    @nnx.grad
    def gradient(conv):
        return jnp.sum(jnp.square(conv(x, train=False).astype(jnp.float32)))

    found = gradient(conv).conv.kernel.get_value()
    assert found.dtype == jnp.float32
    assert (found != found.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9
