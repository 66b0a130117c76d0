"""RoIAlign against a plain loop over samples, and what it promises beyond the numbers."""

import functools

import detection
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.ops.roi_align import bin_weights, roi_align

SIZES, STRIDES = ((21, 19), (11, 10)), (4, 8)  # no multiples of a tile


def _pyramid(rng, batch=2, channels=3, dtype=jnp.float32):
    shapes = [(batch, *size, channels) for size in SIZES]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def _boxes(rng, shape):
    """Some reach beyond the maps, and some are as long as the map and thin."""
    boxes = detection.random_boxes(rng, shape, size=(100.0, 90.0)) - 8
    boxes[..., 0, :] = [-3, 20, 85, 23]
    return jnp.asarray(boxes)


@functools.partial(jax.jit, static_argnames=("output_size",))
def _align(pyramid, boxes, output_size, levels=None, valid=None):
    return roi_align(
        pyramid, boxes, strides=STRIDES, output_size=output_size, levels=levels, valid=valid
    )


def _interpolated(x, row, column):
    height, width, channels = x.shape
    if not (-1 <= row <= height and -1 <= column <= width):
        return np.zeros(channels)
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    upper = (1 - across) * x[top, left] + across * x[top, right]
    lower = (1 - across) * x[bottom, left] + across * x[bottom, right]
    return (1 - down) * upper + down * lower


def sampled(x, box, stride, bins):
    """The definition: the mean of bilinear samples, for one region."""
    left, top, right, bottom = np.asarray(box, np.float64) / stride - 0.5
    high, wide = (bottom - top) / bins, (right - left) / bins
    rows, columns = int(np.ceil(high)), int(np.ceil(wide))
    out = np.zeros((bins, bins, x.shape[-1]))
    for p in range(bins):
        for q in range(bins):
            samples = [
                _interpolated(
                    x, top + (p + (i + 0.5) / rows) * high, left + (q + (j + 0.5) / columns) * wide
                )
                for i in range(rows)
                for j in range(columns)
            ]
            out[p, q] = np.mean(samples, axis=0)
    return out


def test_equals_the_definition_on_every_level():
    rng = np.random.default_rng(0)
    pyramid, boxes = _pyramid(rng), _boxes(rng, (2, 9))
    levels = jnp.asarray(rng.integers(0, 2, (2, 9)), jnp.int32)
    out = _align(pyramid, boxes, 3, levels=levels)
    for image in range(2):
        for region in range(9):
            level = int(levels[image, region])
            x = np.asarray(pyramid[level][image], np.float64)
            expected = sampled(x, boxes[image, region], STRIDES[level], 3)
            np.testing.assert_allclose(out[image, region], expected, atol=1e-5)


def test_gradient_is_the_transpose():
    """<align(x), y> == <x, transpose(y)>, for more regions than are worked on side by side."""
    rng = np.random.default_rng(1)
    pyramid, boxes = _pyramid(rng), _boxes(rng, (2, 70))
    valid = jnp.asarray(rng.random((2, 70)) < 0.8)

    def align(pyramid):
        return roi_align(pyramid, boxes, strides=STRIDES, output_size=(2, 3), valid=valid)

    out, transpose = jax.vjp(jax.jit(align), pyramid)
    transpose = jax.jit(transpose)
    y = jnp.asarray(rng.standard_normal(out.shape), jnp.float32)
    (back,) = transpose(y)
    left = np.vdot(np.asarray(out, np.float64), y)
    right = sum(np.vdot(np.asarray(x, np.float64), g) for x, g in zip(pyramid, back, strict=True))
    assert left == pytest.approx(right, rel=1e-5)
    # And the transpose is linear in single entries: a random direction is no accident.
    for entry in [(0, 3, 1, 2, 0), (1, 69, 0, 0, 2)]:
        (back,) = transpose(jnp.zeros_like(y).at[entry].set(1.0))
        inner = sum(np.vdot(np.asarray(x), g) for x, g in zip(pyramid, back, strict=True))
        assert inner == pytest.approx(float(out[entry]), abs=1e-5)


def test_forward_and_backward_are_deterministic():
    rng = np.random.default_rng(2)
    pyramid, boxes = _pyramid(rng), _boxes(rng, (2, 40))

    @jax.jit
    def run(pyramid):
        def loss(pyramid):
            return jnp.sum(jnp.sin(roi_align(pyramid, boxes, strides=STRIDES, output_size=7)))

        return jax.value_and_grad(loss)(pyramid)

    first, again = run(pyramid), run(pyramid)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), first, again))
    assert "scatter" not in run.lower(pyramid).as_text()


def test_what_does_not_count_is_zero():
    rng = np.random.default_rng(3)
    pyramid = _pyramid(rng)
    boxes = jnp.asarray([[[4.0, 4, 40, 40], [9, 9, 9, 30], [30, 30, 9, 9], [500, 4, 540, 40]]] * 2)
    valid = jnp.asarray([[False, True, True, True]] * 2)
    out = _align(pyramid, boxes, 7, valid=valid)
    assert not np.any(out)
    empty = _align(pyramid, boxes[:, :0], 7)
    assert empty.shape == (2, 0, 7, 7, 3)


def test_half_precision_maps():
    """Interpolated in float32, then rounded once."""
    rng = np.random.default_rng(4)
    pyramid, boxes = _pyramid(rng, dtype=jnp.bfloat16), _boxes(rng, (2, 5))
    out = _align(pyramid, boxes, 7)
    exact = _align([x.astype(jnp.float32) for x in pyramid], boxes, 7)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.oldest
def test_batch_on_a_mesh():
    """Sharded over eight devices: the same to the bit, and neither maps nor grids are exchanged."""
    rng = np.random.default_rng(5)
    pyramid, boxes = _pyramid(rng, batch=8), _boxes(rng, (8, 6))

    def run(pyramid, boxes):
        out, transpose = jax.vjp(
            lambda x: roi_align(x, boxes, strides=STRIDES, output_size=7), pyramid
        )
        return out, transpose(jnp.sin(out))[0]

    run = jax.jit(run)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_batch = jax.NamedSharding(mesh, jax.P("data"))
    sharded = jax.device_put((pyramid, boxes), over_batch)
    text = run.lower(*sharded).compile().as_text()
    assert "all-gather" not in text
    ours, alone = run(*sharded), run(pyramid, boxes)
    jax.tree.map(np.testing.assert_array_equal, ours, alone)
    assert all(x.sharding.is_equivalent_to(over_batch, x.ndim) for x in jax.tree.leaves(ours))


def test_vmap_over_models():
    """An ensemble: other maps and other boxes, of which one has much more work."""
    rng = np.random.default_rng(6)
    pyramids = [jnp.stack(maps) for maps in zip(_pyramid(rng), _pyramid(rng), strict=True)]
    boxes = jnp.stack([_boxes(rng, (2, 5)), _boxes(rng, (2, 5)) * 0.1])
    together = jax.jit(jax.vmap(lambda x, b: _align(x, b, 2)))(pyramids, boxes)
    for i in range(2):
        alone = _align([x[i] for x in pyramids], boxes[i], 2)
        np.testing.assert_allclose(together[i], alone, atol=1e-6)


def test_weights_of_an_interval_sum_to_its_share_inside():
    weights = bin_weights(
        jnp.asarray([2.3, -6.0]),
        jnp.asarray([5.0, 4.0]),
        jnp.asarray([9, 9], jnp.int32),
        bins=4,
        positions=12,
    )
    np.testing.assert_allclose(weights[0].sum(-1), np.ones(4), rtol=1e-6)
    assert not np.any(weights[:, :, 9:])
    assert not np.any(weights[1])  # ends before -1


def test_bad_arguments():
    pyramid, boxes = _pyramid(np.random.default_rng(7)), jnp.zeros((2, 1, 4))
    with pytest.raises(ValueError, match="strides must hold one for each map; got 1, 2"):
        roi_align(pyramid, boxes, strides=[4], output_size=7)
    with pytest.raises(ValueError, match="output_size"):
        roi_align(pyramid, boxes, strides=STRIDES, output_size=0)
