"""The kernels for large windows on TPUs: what they compute, and what they decline."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, assert_reads_what_was_written, fused, value_and_gradients
from jax.sharding import AxisType
from large_windows import BIAS, NO_BIAS, PROBLEMS, SPLIT_2D, SPLIT_3D
from windows import in_parts

import natjax
from natjax.kernels import registry
from natjax.kernels.neighborhood import Neighborhood

pytestmark = pytest.mark.skipif(
    "mosaic_tpu" not in registry.names(), reason="the kernels for TPUs are not there"
)

QUICK = ("2d", "3d-causal-dilation", "2d-bias")


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(p, id=p.name, marks=[] if p.name in QUICK else pytest.mark.slow)
        for p in PROBLEMS
    ],
)
def test_values_and_gradients_are_those_of_the_reference(problem, few_logits):
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    walk = Walk.of(problem.neighborhood, "queries", problem.heads, 64, has_bias=problem.rpb)
    assert walk.num_steps > walk.num_tiles > 1
    arrays = problem.arrays()
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    assert_close(value_and_gradients(fused(problem, "mosaic_tpu"), arrays), expected)


@pytest.mark.parametrize(
    ("problem", "dtype"),
    [
        (NO_BIAS(name="2d", shape=(17, 27), kernel_size=(6, 11), head_dim=128), "bfloat16"),
        *(
            pytest.param(p, dtype, marks=pytest.mark.slow)
            for p in PROBLEMS
            for dtype in ("float32", "bfloat16")
        ),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_nothing_is_read_that_nobody_wrote(problem, dtype, few_logits, strict):
    assert_reads_what_was_written(fused, problem, dtype)


@pytest.mark.parametrize(
    ("problem", "axes"),
    [
        pytest.param(SPLIT_2D, ("y", "x"), id="2d"),
        pytest.param(SPLIT_3D, (None, "y", "z"), id="3d", marks=pytest.mark.slow),
        pytest.param(
            NO_BIAS(name="", shape=(1200,), kernel_size=(500,), dilation=2, heads=2, head_dim=40),
            ("x",),
            id="1d",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            NO_BIAS(
                name="",
                shape=(6, 20, 30),
                kernel_size=(4, 9, 7),
                is_causal=(False, True, False),
                heads=1,
                head_dim=128,
            ),
            ("z", "y", None),
            id="3d-causal",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tokens_split_over_devices(problem, axes, few_logits, mesh_of):
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    mesh = mesh_of((2, 3 if "z" in axes else 4), ("y", "z" if "z" in axes else "x"), AxisType.Auto)
    parts = [1 if name is None else mesh.shape[name] for name in axes]
    neighborhood = Neighborhood(tuple(map(in_parts, problem.neighborhood.axes, parts)))
    walk = Walk.of(neighborhood, "queries", problem.heads, 64, has_bias=problem.rpb)
    assert walk.num_steps > walk.num_tiles > 1
    arrays = problem.arrays()
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    with natjax.sharding.space(*axes, mesh=mesh):
        assert_close(value_and_gradients(fused(problem, "mosaic_tpu"), arrays), expected)


@pytest.mark.slow
def test_a_circle_that_is_split_over_devices(few_logits, mesh_of):
    """In parts, there are windows that go round."""
    problem = BIAS(name="", shape=(4, 120), kernel_size=(3, 41), dilation=(1, 2), heads=2)
    arrays = problem.arrays()

    def circle(implementation):
        options = {"is_periodic": (False, True), "stride": (1, 3), "return_lse": True}
        options |= {"kernel_size": (3, 41), "dilation": (1, 2), "implementation": implementation}
        return lambda arrays: natjax.na2d(**arrays, **options)

    expected = value_and_gradients(circle("xla"), arrays)
    with natjax.sharding.space(None, "x", mesh=mesh_of((4,), ("x",), AxisType.Auto)):
        assert_close(value_and_gradients(circle("mosaic_tpu"), arrays), expected)


SHARED = BIAS(name="shared", shape=(9, 18), kernel_size=(4, 7), batch=2, heads=2, head_dim=64)


@pytest.mark.parametrize(
    "split",
    [
        pytest.param({}, id="one-device", marks=pytest.mark.slow),
        pytest.param({"batch": "y", "heads": "x"}, id="devices"),
    ],
)
def test_vmapped_biases_take_one_kernel(split, few_logits, mesh_of, monkeypatch, request):
    """Each entry has a bias of its own, and so a gradient of it; also where devices share them."""
    if not split:
        # Sums must begin with zeros for each of them.
        request.getfixturevalue("strict")

    def one_by_one(*_):
        raise AssertionError("calls are batched")

    def run(implementation):
        function = functools.partial(value_and_gradients, fused(SHARED, implementation))
        return jax.vmap(function)(stacked)

    entries = [SHARED.arrays(seed) for seed in range(3 - len(split))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *entries)
    expected = run("reference")
    monkeypatch.setattr("natjax.kernels.sharding.batching._one_by_one", one_by_one)
    mesh = mesh_of((2, 2), ("y", "x"), AxisType.Auto)
    with jax.set_mesh(mesh) if split else contextlib.nullcontext(), natjax.sharding.split(**split):
        assert_close(run("mosaic_tpu"), expected)


def test_nan_in_a_key_stays_with_those_who_see_it(few_logits):
    problem = NO_BIAS(name="nan", shape=(16, 24), kernel_size=(5, 7), heads=1, head_dim=16)
    arrays = problem.arrays()
    arrays["key"] = arrays["key"].at[0, 4, 9].set(jnp.nan)
    out, lse = fused(problem, "mosaic_tpu")(arrays)
    rows, columns = (
        axis.is_neighbor(np.arange(axis.length), key)
        for axis, key in zip(problem.neighborhood.axes, (4, 9), strict=True)
    )
    seen = rows[:, None] & columns[None]
    np.testing.assert_array_equal(np.isnan(out).any(axis=(-1, -2))[0], seen)
    np.testing.assert_array_equal(np.isnan(lse).any(axis=-1)[0], seen)


def test_biases_whose_gradient_does_not_fit_are_declined(interpreted):
    """The sums of four heads that share the lanes take four times the memory."""
    x = jax.ShapeDtypeStruct((1, 256, 256, 4, 32), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((4, 159, 159), jnp.float32)
    attend = functools.partial(natjax.na2d, kernel_size=80, implementation="mosaic_tpu")
    assert jax.eval_shape(attend, x, x, x).shape == x.shape
    with pytest.raises(NotImplementedError, match=r"plan for large windows .* a bias; use .*xla"):
        jax.eval_shape(lambda x, b: attend(x, x, x, rpb=b), x, bias)
