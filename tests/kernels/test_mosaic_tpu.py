"""The kernels for TPUs: what their plan covers, what they decline, and memory as a TPU has it."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, assert_reads_what_was_written, fused, unfused, value_and_gradients
from edges import named
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from windows import windows_in_parts

import natjax
from natjax.kernels import device, registry
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning.problems import Problem

pytestmark = pytest.mark.skipif(
    "mosaic_tpu" not in registry.names(), reason="the kernels for TPUs are not there"
)

RAGGED = Problem(
    # Ragged along both axes and in the lanes: two heads and one, groups of 7 and 6 by 10 tokens.
    name="ragged",
    shape=(13, 10),
    kernel_size=(3, 5),
    dilation=(2, 1),
    batch=2,
    heads=3,
    head_dim=40,
)
# More window slots than lanes.
WIDE = Problem(
    name="wide", shape=(24, 14), kernel_size=(12, 12), dilation=(2, 1), heads=2, head_dim=32
)
WHOLE = Problem(name="whole", shape=(14, 20), kernel_size=(7, 9), batch=2, heads=4, head_dim=32)


@pytest.mark.parametrize(
    ("problem", "dtype"),
    [
        (RAGGED, "float32"),
        pytest.param(WHOLE, "float32", marks=pytest.mark.slow),
        pytest.param(WHOLE, "bfloat16", marks=pytest.mark.slow),
        pytest.param(RAGGED, "bfloat16", marks=pytest.mark.slow),
        pytest.param(WIDE, "float32", marks=pytest.mark.slow),
        *(
            pytest.param(named(name), "float32", marks=pytest.mark.slow)
            for name in ("1d-ragged-dilation", "2d-everything", "3d-everything")
        ),
    ],
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize("function", [fused, unfused])
def test_nothing_is_read_that_nobody_wrote(function, problem, dtype, strict):
    assert_reads_what_was_written(function, problem, dtype)


# Both images of a batch, ragged along both axes and in the lanes, in tiles that reach beyond them.
EXTREME = Problem(name="extreme", shape=(9, 10), kernel_size=(3, 3), batch=2, heads=3, head_dim=16)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x | {"query": x["query"].at[1].multiply(25.0)},
        lambda x: x | {"rpb": x["rpb"] - 70.0},
        pytest.param(lambda x: x | {"rpb": x["rpb"] + 70.0}, marks=pytest.mark.slow),
    ],
    ids=["wide", "low", "high"],
)
def test_logits_whose_exponentials_float32_does_not_hold(change, interpreted, monkeypatch):
    """Images are programs of their own, of which the second alone may have such logits."""
    monkeypatch.setattr("natjax.kernels.backends.mosaic_tpu.memory._BLOCK_BYTES", 1)
    arrays = change(EXTREME.arrays())
    expected = value_and_gradients(fused(EXTREME, "reference"), arrays)
    actual = value_and_gradients(fused(EXTREME, "mosaic_tpu"), arrays)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # Logits have fewer digits behind the point, in both.
        assert np.abs(x - y).max() <= 2e-5 * np.abs(y).max()


@pytest.mark.parametrize(
    "problem", [EXTREME, pytest.param(RAGGED, marks=pytest.mark.slow)], ids=lambda x: x.name
)
def test_common_logits_need_no_second_walk(problem, interpreted, monkeypatch, request):
    """What lies beyond queries, keys and heads does not call for one either."""
    from natjax.kernels.backends.mosaic_tpu.softmax import Softmax

    exponentials, arrays = Softmax.exponentials, problem.arrays()

    def spoilt(self, kind, products, *, is_careful):
        x = exponentials(self, kind, products, is_careful=is_careful)
        return x._replace(total=x.total * jnp.nan) if is_careful else x

    # What other tests have traced does without it, and they without this.
    jax.clear_caches()
    request.addfinalizer(jax.clear_caches)
    monkeypatch.setattr(Softmax, "exponentials", spoilt)
    results = value_and_gradients(fused(problem, "mosaic_tpu"), arrays)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    out, _ = fused(problem, "mosaic_tpu")(arrays | {"query": arrays["query"] * 1000.0})
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    "problem",
    [
        # Dilation groups of 11 and 10 rows.
        Problem(
            name="dilated",
            shape=(43, 10),
            kernel_size=(3, 3),
            dilation=(4, 3),
            heads=8,
            batch=2,
        ),
        pytest.param(
            Problem(
                name="video",
                shape=(13, 6, 7),
                kernel_size=(3, 3, 3),
                is_causal=(True, False, False),
                heads=4,
                kv_heads=2,
                head_dim=32,
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda x: x.name,
)
@pytest.mark.parametrize("function", [fused, pytest.param(unfused, marks=pytest.mark.slow)])
def test_images_in_strips(function, problem, interpreted, monkeypatch):
    """As those go that do not fit the memory of a core: keys on both sides of a cut are shared."""
    from natjax.kernels.backends.mosaic_tpu.memory import layout_of

    def in_strips(spec, heads, **options):
        whole = layout_of(spec, heads, **options)
        strips = dataclasses.replace(whole, rows=2 * whole.blocks.axes[0].tile)
        assert strips.num_strips >= 3
        assert strips.keys_of_strip > strips.rows
        return strips

    for ops in ("ops", "unfused.ops"):
        monkeypatch.setattr(f"natjax.kernels.backends.mosaic_tpu.{ops}.layout_of", in_strips)
    arrays = problem.arrays()
    expected = value_and_gradients(function(problem, "reference"), arrays)
    assert_close(value_and_gradients(function(problem, "mosaic_tpu"), arrays), expected)


def test_few_strips_where_a_map_is_too_large():
    from natjax.kernels.backends.mosaic_tpu.memory import layout_of

    def strips(side):
        hood = Problem(name="x", shape=(side, side), kernel_size=(7, 7)).neighborhood
        spec = CallSpec(hood, head_dim=32, value_dim=32, dtype="bfloat16", has_bias=True)
        return layout_of(spec, heads=4).num_strips

    assert strips(56) == 1
    assert 1 < strips(128) <= 4


@given(windows_in_parts(max_kernel_size=13), st.integers(1, 4), st.sampled_from([1, 8]))
def test_slabs_are_aligned_and_hold_every_key(window, width, alignment):
    from natjax.kernels.backends.mosaic_tpu.tiles import axis_tiles

    tiles = axis_tiles(window, 8 * width, alignment)
    assert not np.any(np.array(tiles.starts) % alignment)
    part = np.arange(tiles.num_tiles) * tiles.num_parts // tiles.num_tiles
    group, first, start = tiles.locate(np.arange(tiles.num_tiles))
    assert (group // window.dilation == part).all()
    assert (start + tiles.shift >= 0).all()
    assert (start + tiles.shift + tiles.halo <= tiles.columns).all()
    index = (first[:, None] + np.arange(tiles.tile)) * window.dilation
    index = index + (group % window.dilation)[:, None]
    exists = index < window.num_queries
    query = np.asarray(window.origins)[part][:, None] + np.where(exists, index, 0)
    # Tokens of the first and the last key of each window, and of those of the slab.
    low = window.start(query) * window.dilation + query % window.dilation
    high = (window.end(query) - 1) * window.dilation + query % window.dilation
    before = window.key_range[0] - tiles.frame.padding + np.asarray(window.origins)[part]
    slab = before + start * window.dilation + group % window.dilation
    assert (~exists | (low >= slab[:, None])).all()
    assert (~exists | (high < (slab + tiles.halo * window.dilation)[:, None])).all()


# Windows of ten tokens along parts of six: keys come from several neighbors, and begin with another
# dilation group than queries.
SPLIT = Problem(
    name="split", shape=(8, 24), kernel_size=(3, 5), dilation=(1, 2), heads=2, head_dim=8
)


@pytest.mark.parametrize(
    ("problem", "axes"),
    [
        (SPLIT, ("y", "x")),
        pytest.param(
            Problem(
                name="causal",
                shape=(3, 8, 12),
                kernel_size=(2, 3, 3),
                stride=(1, 2, 1),
                is_causal=(True, False, True),
                batch=2,
                heads=4,
                kv_heads=2,
                extra=2,
            ),
            (None, "y", "x"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Problem(name="line", shape=(52,), kernel_size=(3,), dilation=4, heads=3, head_dim=40),
            ("x",),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_tokens_split_over_devices(problem, axes, interpreted, mesh_of):
    arrays = problem.arrays()
    expected = value_and_gradients(fused(problem, "reference"), arrays)
    mesh = mesh_of((2, 4), ("y", "x"), AxisType.Auto)
    with natjax.sharding.space(*axes, mesh=mesh):
        assert_close(value_and_gradients(fused(problem, "mosaic_tpu"), arrays), expected)


@pytest.mark.slow
def test_second_derivatives_of_split_tokens(interpreted, mesh_of):
    """Plain JAX has them, and has to be told which part is at hand."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 12, 1, 8))

    def push(implementation):
        def loss(query):
            out = natjax.na1d(query, key, value, 3, implementation=implementation)
            return jnp.sum(jnp.cos(out))

        return jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),)))(query)

    expected = push("xla")
    with natjax.sharding.space("x", mesh=mesh_of((2,), ("x",), AxisType.Auto)):
        actual = push("mosaic_tpu")
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_circle_that_is_split_over_devices(interpreted, mesh_of):
    """In parts, there are windows that go round; whole, it is declined."""
    arrays = Problem(name="", shape=(24,), kernel_size=(5,), heads=2).arrays()

    def circle(implementation):
        options = {"dilation": 2, "stride": 2, "is_periodic": True, "return_lse": True}
        op = functools.partial(natjax.na1d, kernel_size=5, implementation=implementation, **options)
        return lambda arrays: op(**arrays)

    expected = value_and_gradients(circle("xla"), arrays)
    with natjax.sharding.space("x", mesh=mesh_of((4,), ("x",), AxisType.Auto)):
        assert_close(value_and_gradients(circle("mosaic_tpu"), arrays), expected)
    with pytest.raises(NotImplementedError, match=r'got a whole periodic axis; use .*"xla"'):
        circle("mosaic_tpu")(arrays)


def test_queries_that_lie_among_more_keys(interpreted):
    """A part of the queries with the keys that it sees, as of a map that is computed in pieces."""
    arrays = Problem(name="", shape=(12, 9), kernel_size=(3, 3), heads=2).arrays()
    window = {"kernel_size": 3, "dilation": (2, 1)}
    whole = natjax.na2d(**arrays, **window, implementation="reference")
    some = {name: x[:, 2:] for name, x in arrays.items() if name in ("key", "value")}
    out = natjax.na2d(
        arrays["query"][:, 6:10],
        **some,
        rpb=arrays["rpb"],
        **window,
        length=(12, 9),
        query_offset=(6, 0),
        key_offset=(2, 0),
        implementation="mosaic_tpu",
    )
    np.testing.assert_allclose(out, whole[:, 6:10], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [fused, pytest.param(unfused, marks=pytest.mark.slow)])
def test_vmapped_biases_take_one_kernel(function, interpreted, monkeypatch):
    """Each entry has a gradient of the bias of its own, and some have the same bias."""

    def one_by_one(*_):
        raise AssertionError("calls are batched")

    monkeypatch.setattr("natjax.kernels.sharding.batching._one_by_one", one_by_one)
    problem = Problem(name="", shape=(5, 6), kernel_size=(3, 3), heads=2, batch=2)
    run = functools.partial(value_and_gradients, function(problem, "mosaic_tpu"))
    seeds = np.arange(6).reshape(2, 3)
    every = [[problem.arrays(int(seed)) for seed in row] for row in seeds]
    rows = [jax.tree.map(lambda *x: jnp.stack(x), *row) for row in every]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    stacked["rpb"] = stacked["rpb"][0]
    axes = {name: None if name == "rpb" else 0 for name in stacked}
    actual = jax.vmap(jax.vmap(run), in_axes=(axes,))(stacked)
    for i, j in np.ndindex(2, 3):
        expected = run(every[i][j] | {"rpb": every[0][j]["rpb"]})
        found = jax.tree.map(lambda x, i=i, j=j: x[i, j], actual)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected
        )


@pytest.mark.parametrize("name", ["1d-ragged-dilation", "3d-everything"])
def test_rows_of_lanes_are_unpacked_as_they_were_packed(name):
    from natjax.kernels.backends.mosaic_tpu import packing
    from natjax.kernels.backends.mosaic_tpu.layout import Layout

    neighborhood, heads = named(name).neighborhood, 5
    layout = Layout.of(neighborhood, heads, head_dim=32)
    assert layout.logit_lanes <= 128
    x = np.arange(neighborhood.num_tokens * heads, dtype=np.float32).reshape(1, -1, heads)
    packed = packing.pack_rows(jnp.asarray(x), layout)
    np.testing.assert_array_equal(packing.unpack_rows(packed, layout, heads), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": jnp.float16}, r"takes the dtypes \('bfloat16', 'float32'\); got float16"),
        ({"head_dim": 160}, "takes head sizes up to 128; got 160"),
        ({"width": 200_000}, r"takes maps of which .* got \(9, 200000\) tokens"),
    ],
)
def test_what_is_declined_says_what_would_work(change, message, interpreted):
    width, head_dim = change.get("width", 9), change.get("head_dim", 32)
    x = jax.ShapeDtypeStruct((1, 9, width, 4, head_dim), change.get("dtype", jnp.float32))
    rpb = jax.ShapeDtypeStruct((4, 5, 5), x.dtype)

    def attend(x, rpb, implementation=None):
        return natjax.na2d(x, x, x, 3, rpb=rpb, implementation=implementation)

    with pytest.raises(NotImplementedError, match=f'"mosaic_tpu" {message}.*; use .*"xla"'):
        jax.eval_shape(functools.partial(attend, implementation="mosaic_tpu"), x, rpb)
    assert jax.eval_shape(attend, x, rpb).shape == x.shape


def test_windows_whose_weights_do_not_fit_are_declined_unfused(interpreted):
    x = jax.ShapeDtypeStruct((1, 64, 64, 1, 128), jnp.float32)
    attend = functools.partial(natjax.na2d_qk, kernel_size=41, implementation="mosaic_tpu")
    with pytest.raises(NotImplementedError, match=r'the weights of unfused .*; use .*"xla"'):
        jax.eval_shape(attend, x, x)


def test_a_machine_without_a_tpu_says_so(monkeypatch):
    if jax.default_backend() == "tpu":
        pytest.skip("this is about machines without a TPU")
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    x = jnp.zeros((1, 9, 1, 8))
    with pytest.raises(NotImplementedError, match=r'needs a TPU; got .*use implementation="xla"'):
        natjax.na1d(x, x, x, 3, implementation="mosaic_tpu")


def test_maps_of_few_columns_are_declined_where_kernels_are_compiled(monkeypatch):
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(device, "targets", lambda: (chip,))
    attend = functools.partial(natjax.na2d, kernel_size=3, implementation="mosaic_tpu")
    few, enough = (jax.ShapeDtypeStruct((1, 8, n, 4, 32), jnp.bfloat16) for n in (4, 5))
    with pytest.raises(NotImplementedError, match=r'takes 5 tokens or more .*; got 4; use .*"xla"'):
        jax.eval_shape(attend, few, few, few)
    assert jax.eval_shape(attend, enough, enough, enough).shape == enough.shape


@pytest.mark.oldest
def test_what_runs_is_chosen_when_a_program_is_lowered(monkeypatch):
    """On a machine with a TPU: `None` has kernels in programs for it, but not in those for CPUs."""
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(device, "targets", lambda: (chip,))
    x = jax.ShapeDtypeStruct((2, 9, 8, 4, 32), jnp.bfloat16)

    def step(x):
        out, pull = jax.vjp(lambda x: natjax.na2d(x, x, x, 3), x)
        return pull(out)

    texts = {
        platform: jax.export.export(jax.jit(step), platforms=[platform])(x).mlir_module()
        for platform in ("tpu", "cpu")
    }
    for kernel in ("forward", "backward"):
        assert f"natjax_tpu_{kernel}" in texts["tpu"]
        assert f"natjax_tpu_{kernel}" not in texts["cpu"]


@pytest.mark.oldest
@pytest.mark.parametrize("batch", [1, 64])
def test_maps_of_a_single_tile_are_lowered(batch, monkeypatch):
    """Mosaic fails at a store whose index is an array of a constant, in a loop over maps."""
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(device, "targets", lambda: (chip,))
    x = jax.ShapeDtypeStruct((batch, 4, 8, 4, 32), jnp.bfloat16)
    step = lambda x: jax.vjp(lambda x: natjax.na2d(x, x, x, 3), x)[1](x)  # noqa: E731
    text = jax.export.export(jax.jit(step), platforms=["tpu"])(x).mlir_module()
    assert "natjax_tpu_forward" in text
    assert "natjax_tpu_backward" in text


@pytest.mark.oldest
def test_programs_for_several_tpus(monkeypatch, mesh_of):
    """With kernels where tracing knows the mesh, and in plain JAX where it does not."""
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(device, "targets", lambda: (chip,))
    mesh = mesh_of((8,), ("data",), AxisType.Auto)
    x = jax.ShapeDtypeStruct((8, 9, 8, 4, 32), jnp.bfloat16)
    place = NamedSharding(mesh, P("data"))

    def exported():
        attend = jax.jit(lambda x: natjax.na2d(x, x, x, 3), in_shardings=place)
        return jax.export.export(attend, platforms=["tpu"])(x).mlir_module()

    assert "natjax_tpu_forward" not in exported()
    with jax.set_mesh(mesh):
        assert "natjax_tpu_forward" in exported()
