"""Windows, scales and flips, on networks simple enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.dense.segmentation.inference import multi_scale, sliding_window, whole_image


def _images(height=7, width=10):
    return jax.random.normal(jax.random.key(0), (2, height, width, 3))


def test_a_network_without_context_sees_no_windows():
    """Averages of equal logits: windows of any shape give what the whole image gives."""
    images = _images()
    whole = whole_image(lambda x: x, images, (7, 10))
    np.testing.assert_allclose(whole, jax.nn.softmax(images, -1), atol=1e-6)
    for window, stride in ((3, 2), ((7, 4), (7, 3)), (20, 20), ((2, 10), (1, 1))):
        tiled = sliding_window(lambda x: x, images, (7, 10), window=window, stride=stride)
        np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_windows_are_moved_back_into_the_image_and_averaged():
    """A network that gives each window its mean, against the windows one by one."""

    def network(images):
        mean = jnp.mean(images, axis=(1, 2), keepdims=True)
        return jnp.broadcast_to(mean, images.shape)

    images = _images(5, 8)
    total, count = np.zeros(images.shape), np.zeros(images.shape)
    for top in (0, 2):  # 0, 3 moved back by one
        for left in (0, 3, 4):  # 0, 3, 6 moved back by two
            window = np.asarray(images[:, top : top + 3, left : left + 4])
            total[:, top : top + 3, left : left + 4] += window.mean((1, 2), keepdims=True)
            count[:, top : top + 3, left : left + 4] += 1
    expected = jax.nn.softmax(jnp.asarray(total / count, jnp.float32), -1)
    actual = sliding_window(network, images, (5, 8), window=(3, 4), stride=3)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_flips_are_undone():
    images = _images()
    plain = whole_image(lambda x: x, images, (7, 10))
    both = multi_scale(lambda x: whole_image(lambda y: y, x, (7, 10)), [images])
    np.testing.assert_allclose(both, plain, atol=1e-6)
    # A network that looks to the left sees something else in the mirror image.
    shifted = multi_scale(lambda x: jnp.roll(x, 1, axis=2), [images])
    expected = (jnp.roll(images, 1, 2) + jnp.roll(images, -1, 2)) / 2
    np.testing.assert_allclose(shifted, expected, atol=1e-6)


def test_scales_have_equal_weight():
    scaled = [jnp.full((1, n, n, 2), float(n)) for n in (2, 3, 7)]

    def probabilities(images):
        return jnp.broadcast_to(jnp.mean(images), (1, 4, 4, 2))

    actual = multi_scale(probabilities, scaled, flip=False)
    np.testing.assert_allclose(actual, 4.0)


def test_errors():
    with pytest.raises(ValueError, match=r"stride must not exceed window \(3, 3\); got \(3, 4\)"):
        sliding_window(lambda x: x, _images(), (7, 10), window=3, stride=(3, 4))
    with pytest.raises(ValueError, match="at one size at least"):
        multi_scale(lambda x: x, [])
