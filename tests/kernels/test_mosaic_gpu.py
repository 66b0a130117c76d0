"""What is particular to the kernels for Hopper: half precision, lines of tokens, the ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import fused, value_and_gradients
from test_implementations import plain_attention

from natjax.kernels import registry
from natjax.kernels.tuning.problems import Problem

pytestmark = pytest.mark.skipif(
    "mosaic_gpu" not in registry.names(), reason="the kernels for Hopper are not there"
)
NEEDS_IM2COL = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the kernels need jax 0.12 or later"
)


def assert_errs_little(problem, dtype="bfloat16"):
    """At most twice as much as plain attention in the same dtype, in values and gradients."""
    low = problem.arrays(dtype=dtype)
    exact = {k: v.astype(jnp.float32) for k, v in low.items()}
    truth = value_and_gradients(fused(problem, "reference"), exact)
    plain = value_and_gradients(functools.partial(plain_attention, problem), low)
    actual = value_and_gradients(fused(problem, "mosaic_gpu"), low)
    assert actual[0][0].dtype == dtype
    assert actual[0][1].dtype == jnp.float32
    np.testing.assert_allclose(actual[0][1], truth[0][1], atol=1e-2)
    pairs = {"out": (actual[0][0], plain[0][0], truth[0][0])}
    pairs |= {f"d{k}": (actual[1][k], plain[1][k], truth[1][k]) for k in low}
    for name, (x, y, z) in pairs.items():
        error, allowed = (np.abs(np.asarray(a, np.float32) - z).max() for a in (x, y))
        assert error <= 2 * allowed + 1e-6, (name, error, allowed)


EVERYTHING_2D = Problem(
    name="2d-everything",
    shape=(13, 22),
    kernel_size=(4, 3),
    stride=(2, 1),
    dilation=(2, 1),
    is_causal=(False, True),
    heads=2,
    kv_heads=1,
    head_dim=16,
    extra=2,
)


@NEEDS_IM2COL
@pytest.mark.parametrize("problem", [EVERYTHING_2D], ids=lambda p: p.name)
def test_errs_little(problem, interpreted):
    assert_errs_little(problem)
