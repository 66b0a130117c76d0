"""The pyramid; its numbers are in test_golden_detectors.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from natjax.dense.detection.fpn import FPN
from natjax.dense.resize import resize_nearest

OPTIONS = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def test_sizes_that_do_not_divide():
    rng = np.random.default_rng(0)
    sizes = [(25, 13), (13, 7), (7, 4)]
    maps = [jnp.asarray(rng.standard_normal((2, *s, 3)), jnp.float32) for s in sizes]
    pyramid = FPN((3, 3, 3), 5, extra_levels=2, rngs=nnx.Rngs(0), **OPTIONS)(maps)
    assert [x.shape[1:] for x in pyramid] == [(*s, 5) for s in [*sizes, (4, 2), (2, 1)]]
    np.testing.assert_array_equal(pyramid[3], pyramid[2][:, ::2, ::2])


def test_another_number_of_maps():
    fpn = FPN((3, 3), 5, rngs=nnx.Rngs(0), **OPTIONS)
    with pytest.raises(ValueError, match="maps must hold 2, as the pyramid was made for; got 1"):
        fpn([jnp.ones((1, 4, 4, 3))])


@pytest.mark.parametrize(("old", "new"), [(5, 10), (5, 9), (1, 1), (4, 4), (5, 7), (7, 3), (2, 9)])
def test_nearest_and_its_gradient(old, new):
    x = jnp.arange(2.0 * old).reshape(1, old, 2, 1)
    source = np.arange(new) * old // new
    out, transpose = jax.vjp(lambda x: resize_nearest(x, (new, 2)), x)
    np.testing.assert_array_equal(out, x[:, source])
    (gradient,) = transpose(jnp.ones_like(out))
    np.testing.assert_array_equal(gradient[0, :, 0, 0], np.bincount(source, minlength=old))
