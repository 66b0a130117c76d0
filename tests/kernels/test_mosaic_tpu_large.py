"""The kernels for large windows on TPUs: what their walks cover, and what they compute."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, fused, value_and_gradients
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

import natjax
from natjax.kernels import registry
from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning.problems import Problem

pytestmark = pytest.mark.skipif(
    "mosaic_tpu" not in registry.names(), reason="the kernels for TPUs are not there"
)

FOLDER = "natjax.kernels.backends.mosaic_tpu"
NO_BIAS = functools.partial(Problem, rpb=False)
BIAS = functools.partial(Problem, rpb=True)
# Maps of several tiles with several chunks each, with the limits of `few_logits`.
PROBLEMS = (
    # Neither axis divides, heads of 128 channels and keys that are one head.
    NO_BIAS(name="2d", shape=(21, 27), kernel_size=(8, 11), heads=2, kv_heads=1, head_dim=128),
    # Groups of two lengths, a window of several queries, three heads in the lanes, and values
    # that are smaller.
    NO_BIAS(
        name="2d-everything",
        shape=(29, 33),
        kernel_size=(6, 9),
        stride=(2, 3),
        dilation=(1, 2),
        is_causal=(True, False),
        batch=2,
        heads=6,
        kv_heads=3,
        head_dim=40,
        value_dim=33,
        extra=3,
    ),
    NO_BIAS(name="3d", shape=(7, 9, 20), kernel_size=(4, 5, 12), heads=1, head_dim=64),
    NO_BIAS(
        name="3d-causal-dilation",
        shape=(8, 9, 18),
        kernel_size=(5, 3, 7),
        dilation=(1, 2, 1),
        is_causal=(True, False, False),
        batch=2,
        heads=4,
        head_dim=32,
    ),
    # Windows that are blocks: every chunk within one is seen as a whole.
    NO_BIAS(name="1d-blocked", shape=(700,), kernel_size=(256,), stride=256, heads=2, head_dim=24),
    BIAS(name="2d-bias", shape=(19, 27), kernel_size=(6, 11), batch=2, heads=2, head_dim=64),
    # Three heads for two blocks of lanes, and chunks with several rows of the map in a vector.
    BIAS(
        name="2d-bias-everything",
        shape=(23, 33),
        kernel_size=(6, 9),
        stride=(2, 3),
        dilation=(1, 2),
        is_causal=(True, False),
        heads=3,
        kv_heads=1,
        head_dim=64,
        extra=3,
    ),
    BIAS(name="3d-bias", shape=(6, 7, 18), kernel_size=(4, 5, 9), heads=1, head_dim=128),
    BIAS(name="1d-bias", shape=(500,), kernel_size=(200,), heads=2, head_dim=24),
)
QUICK = ("2d", "3d-causal-dilation", "2d-bias")


@pytest.fixture
def few_logits(monkeypatch, interpreted):
    """Every call goes to the kernels for large windows, whose tiles and chunks are small."""
    for module in ("ops", "support"):
        monkeypatch.setattr(f"{FOLDER}.{module}.prefers_large", lambda spec, heads: True)
    monkeypatch.setattr(f"{FOLDER}.large.walk._ROWS", 128)
    monkeypatch.setattr(f"{FOLDER}.large.walk._COLUMNS", 256)
    _forget_plans()
    yield
    _forget_plans()


def _forget_plans():
    from natjax.kernels.backends.mosaic_tpu.large import choice, walk

    choice.walks_of.cache_clear()
    walk._best_axes.cache_clear()
    walk._sides_of_chunks.cache_clear()
    jax.clear_caches()


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
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    arrays = problem.arrays(dtype=dtype)
    exact = {name: x.astype(jnp.float32) for name, x in arrays.items()}
    expected = value_and_gradients(fused(problem, "reference"), exact)
    actual = value_and_gradients(fused(problem, "mosaic_tpu"), arrays)
    assert not interpret_pallas_call.races.races_found
    if dtype == "float32":
        assert_close(actual, expected)
        return
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        error = np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max()
        assert error < 2**-6


SHARED = BIAS(name="shared", shape=(9, 18), kernel_size=(4, 7), batch=2, heads=2, head_dim=64)


@pytest.mark.parametrize("split", [{}, {"batch": "y", "heads": "x"}], ids=["one", "several"])
def test_vmapped_biases_take_one_kernel(split, few_logits, mesh_of, monkeypatch):
    """Each entry has a bias of its own, and so a gradient of it; also where devices share them."""

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


@st.composite
def walks(draw):
    kernel_size, dilation = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    window = AxisWindow(
        length=kernel_size * dilation + draw(st.integers(0, 60)),
        kernel_size=kernel_size,
        stride=draw(st.integers(1, kernel_size)),
        dilation=dilation,
        is_causal=draw(st.booleans()),
    )
    alignment = draw(st.sampled_from([1, 8]))
    tile, chunk = (alignment * draw(st.integers(1, 4)) for _ in range(2))
    return window, draw(st.sampled_from(["queries", "keys"])), tile, chunk, alignment


@given(walks())
def test_chunks_hold_every_pair_once_and_masks_say_which(arguments):
    from natjax.kernels.backends.mosaic_tpu.large.axis import axis_masks, axis_walk

    walk = axis_walk(*arguments)
    window, masks = walk.window, axis_masks(walk)
    found = np.zeros((window.length, window.length), int)
    for tile, count in enumerate(walk.counts):
        group, first = divmod(tile, walk.per_group)
        for chunk in range(count):
            begin = walk.column_of(tile, chunk)
            assert 0 <= begin <= walk.columns - walk.chunk
            row = (first * walk.tile + np.arange(walk.tile)) * window.dilation + group
            column = (begin - walk.shift + np.arange(walk.chunk)) * window.dilation + group
            seen = masks.seen[masks.kind[tile, chunk]]
            exists = row < window.length
            assert masks.is_whole[tile, chunk] == seen[exists].all()
            for i, j in zip(*np.nonzero(seen), strict=True):
                found[row[i], column[j]] += 1
    expected = window.is_neighbor(*np.indices(found.shape)).astype(int)
    np.testing.assert_array_equal(found if walk.rows == "queries" else found.T, expected)


@pytest.mark.parametrize("rows", ["queries", "keys"])
@pytest.mark.parametrize(
    ("shape", "kernel_size", "share"),
    [((256, 256), (80, 80), 0.55), ((30, 48, 80), (18, 24, 24), 0.37), ((20_000,), (2000,), 0.7)],
    ids=str,
)
def test_steps_hold_the_windows_and_little_else(shape, kernel_size, share, rows):
    from natjax.kernels.backends.mosaic_tpu.large.walk import IS_FIRST, IS_LAST, Walk

    problem = Problem(name="x", shape=shape, kernel_size=kernel_size)
    walk = Walk.of(problem.neighborhood, rows, heads=8, head_dim=128, has_bias=False)
    assert walk.num_columns % 128 == 0
    assert walk.axes[-1].shift in range(8)
    steps = walk.steps().reshape(-1, walk.num_fields)
    assert len(steps) == walk.num_steps
    number, flags = steps.T[:2]
    assert (np.diff(number) >= 0).all()
    is_first = np.diff(number, prepend=-1) > 0
    np.testing.assert_array_equal(flags & IS_FIRST > 0, is_first)
    np.testing.assert_array_equal(flags & IS_LAST > 0, np.roll(is_first, -1))
    pairs = problem.neighborhood.num_tokens * problem.neighborhood.num_neighbors
    assert pairs / (len(steps) * walk.num_rows * walk.num_columns) > share


@pytest.mark.parametrize("name", ["2d-everything", "3d-causal-dilation", "1d-blocked"])
def test_maps_are_unpacked_as_they_were_packed(name):
    from natjax.kernels.backends.mosaic_tpu.large import packing
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    (neighborhood,) = (p.neighborhood for p in PROBLEMS if p.name == name)
    walk = Walk.of(neighborhood, "queries", heads=5, head_dim=32, has_bias=False)
    shape = (1, neighborhood.num_tokens, 5, 30)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    packed = packing.as_map(jnp.asarray(x), walk)
    np.testing.assert_array_equal(packing.from_map(packed, walk, 5, 30), x)


def test_statistics_keep_the_digits_of_float32():
    from natjax.kernels.backends.mosaic_tpu.large import packing
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    walk = Walk.of(PROBLEMS[0].neighborhood, "queries", heads=18, head_dim=128, has_bias=False)
    rng = np.random.default_rng(0)
    lse, delta = rng.standard_normal((2, 1, 21 * 27, 18)).astype(np.float32)
    packed = jax.jit(packing.statistics, static_argnums=2)(lse, delta, walk)
    assert packed.dtype == jnp.bfloat16
    parts = np.asarray(packed, np.float32).reshape(1, 21 * 27, 32, 8)[:, :, :18]
    np.testing.assert_array_equal(parts[..., :3].sum(-1), lse)
    np.testing.assert_array_equal(parts[..., 3:6].sum(-1), delta)


def _prefers_large(shape, kernel_size, **change):
    from natjax.kernels.backends.mosaic_tpu.large.choice import prefers_large

    given = {"head_dim": 128, "dtype": "bfloat16", "has_bias": False} | change
    axes = zip(shape, kernel_size, strict=True)
    hood = Neighborhood(tuple(AxisWindow(length=n, kernel_size=k) for n, k in axes))
    return prefers_large(CallSpec(hood, value_dim=given["head_dim"], **given), 2)


def test_the_plan_decides_between_small_and_large_windows():
    assert _prefers_large((256, 256), (80, 80))
    assert _prefers_large((30, 48, 80), (18, 24, 24))
    assert _prefers_large((256, 256), (80, 80), has_bias=True)
    assert _prefers_large((30, 48, 80), (18, 24, 24), has_bias=True)
    for side in (7, 14, 28, 56):
        assert not _prefers_large((side, side), (7, 7), head_dim=32, has_bias=True)
        assert not _prefers_large((side, side), (7, 7))
        assert not _prefers_large((side, side), (7, 7), head_dim=32)


def test_biases_whose_gradient_does_not_fit_are_declined(interpreted):
    """The sums of four heads that share the lanes take four times the memory."""
    x = jax.ShapeDtypeStruct((1, 256, 256, 4, 32), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((4, 159, 159), jnp.float32)
    attend = functools.partial(natjax.na2d, kernel_size=80, implementation="mosaic_tpu")
    assert jax.eval_shape(attend, x, x, x).shape == x.shape
    with pytest.raises(NotImplementedError, match=r"plan for large windows .* a bias; use .*xla"):
        jax.eval_shape(lambda x, b: attend(x, x, x, rpb=b), x, bias)


@pytest.mark.parametrize("rows", ["queries", "keys"])
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.rpb], ids=lambda p: p.name)
def test_blocks_of_biases_hold_that_of_every_pair(problem, rows, few_logits):
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    walk = Walk.of(problem.neighborhood, rows, heads=1, head_dim=128, has_bias=True)
    sizes = [2 * axis.window.kernel_size - 1 for axis in walk.axes]
    numbers = np.arange(1, 1 + np.prod(sizes), dtype=np.float32)
    table = np.asarray(walk.biases.table(jnp.asarray(numbers)[None], 1.0))[0]
    assert table.shape[1:] == (*walk.biases.entries, walk.biases.width, walk.biases.lanes)
    for step in walk.steps().reshape(-1, walk.num_fields):
        found = _biases_of(walk, step, table)
        seen, distances = np.ones((1, 1), bool), []
        for i, axis in enumerate(walk.axes):
            row = step[3 + i] * axis.tile + np.arange(axis.tile)
            column = step[3 + len(sizes) + i] - axis.shift + np.arange(axis.chunk)
            # Dilation groups differ in length, so in who sees whom, and not in distances.
            group = np.unravel_index(step[2], walk.dilation)[i]
            see = axis.is_neighbor(row[:, None], column[None], group)
            seen = np.kron(seen, see & (column[None] >= 0)).astype(bool)
            sign = 1 if rows == "queries" else -1
            distances.append(sign * (column[None] - row[:, None]) + axis.window.kernel_size - 1)
        expected = np.zeros((1, 1), int)
        for size, x in zip(sizes, distances, strict=True):
            expected = np.kron(expected * size, np.ones_like(x)) + np.kron(
                np.ones_like(expected), x
            )
        np.testing.assert_array_equal(found[seen], numbers[expected[seen]])


def _biases_of(walk, step, table):
    """What a kernel adds to the logits of a step, as `Step.logits` reads it."""
    biases, n = walk.biases, len(walk.axes)
    starts = [biases.start(i, step[3 + i], step[3 + n + i]) for i in range(n - 1)]
    box = tuple(slice(at, at + size) for at, size in zip(starts, biases.block, strict=True))
    block = table[step[biases.field]][box]
    assert block.shape[: n - 1] == biases.block
    lines = []
    for line in np.ndindex(*walk.tile[:-1]):
        parts = []
        for first in range(0, walk.num_columns, 128):
            *entry, lane = biases.entry(line, first)
            parts.append(block[*entry, :, lane : lane + 128])
        lines.append(np.concatenate(parts, axis=1))
    return np.concatenate(lines)


def test_gradients_of_biases_are_summed_over_entries():
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    problem = BIAS(name="x", shape=(20, 40), kernel_size=(5, 9))
    walk = Walk.of(problem.neighborhood, "queries", heads=1, head_dim=128, has_bias=True)
    rng = np.random.default_rng(0)
    rpb = jnp.asarray(rng.standard_normal((2, 9 * 17)), jnp.float32)
    table = walk.biases.table(rpb, 1.0)
    other = jnp.asarray(rng.standard_normal(table.shape), jnp.float32)
    gradient = walk.biases.gradient(other)
    np.testing.assert_allclose(np.vdot(gradient, rpb), np.vdot(table, other), rtol=1e-4)
