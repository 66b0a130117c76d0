"""The kernels for large windows on TPUs: their tiles, chunks, masks and tables of biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from large_windows import BIAS, PROBLEMS, SPLIT_2D, SPLIT_3D
from windows import in_parts, windows_in_parts

from natjax.kernels import registry
from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.spec import CallSpec
from natjax.kernels.tuning.problems import Problem

pytestmark = pytest.mark.skipif(
    "mosaic_tpu" not in registry.names(), reason="the kernels for TPUs are not there"
)


@st.composite
def walks(draw):
    window = draw(windows_in_parts(max_kernel_size=40))
    alignment = draw(st.sampled_from([1, 8]))
    tile, chunk = (alignment * draw(st.integers(1, 4)) for _ in range(2))
    return window, draw(st.sampled_from(["queries", "keys"])), tile, chunk, alignment


@given(walks())
def test_chunks_hold_every_pair_once_and_masks_say_which(arguments):
    from natjax.kernels.backends.mosaic_tpu.large.axis import axis_walk

    walk = axis_walk(*arguments)
    window, frame = walk.window, walk.frame
    assert len(walk.counts) == walk.num_parts * walk.num_tiles
    assert max(walk.distances) - min(walk.distances) < 2 * window.length
    shape = tuple(frame.positions(of) * window.dilation for of in ("queries", "keys"))
    places = np.ix_(range(window.num_queries), frame.padding + np.arange(window.num_keys))
    for origin, part in zip(window.origins, walk.part_of.tolist(), strict=True):
        query = origin + window.query_tokens[:, None]
        # A circle is not gone round: keys at hand may be there twice, of which a window has one.
        key = origin + np.arange(*window.key_range)
        sees = (window.start(query) <= key // window.dilation) & (
            key // window.dilation < window.end(query)
        )
        expected = np.zeros(shape, int)
        expected[places] = sees & ((key - query) % window.dilation == 0)
        np.testing.assert_array_equal(_pairs_of(walk, part, shape), expected)


def _pairs_of(walk, part, shape):
    """How often chunks of a part hold each query and key that see one another."""
    from natjax.kernels.backends.mosaic_tpu.large.axis import axis_masks

    masks, dilation = axis_masks(walk), walk.window.dilation
    found = np.zeros(shape if walk.rows == "queries" else shape[::-1], int)
    for tile, chunk in zip(*walk.chunks(part), strict=True):
        group, first = divmod(tile % walk.num_tiles, walk.per_group)
        begin = walk.column_of(tile, chunk)
        assert 0 <= begin <= walk.columns - walk.chunk
        row = (first * walk.tile + np.arange(walk.tile)) * dilation + group
        column = (begin - walk.shift + np.arange(walk.chunk)) * dilation + group
        seen = masks.seen[masks.kind[tile, chunk]]
        before, tokens = walk.frame.tokens(walk.rows)
        exists = (before <= row) & (row < before + tokens)
        assert masks.is_whole[tile, chunk] == seen[exists].all()
        assert masks.is_full[tile] == exists.all()
        for i, j in zip(*np.nonzero(seen), strict=True):
            found[row[i], column[j]] += 1
    return found if walk.rows == "queries" else found.T


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


@pytest.mark.parametrize("rows", ["queries", "keys"])
def test_parts_have_as_many_steps_as_the_longest(rows, few_logits):
    from natjax.kernels.backends.mosaic_tpu.large.walk import IS_FIRST, IS_LAST, Walk

    axes = map(in_parts, SPLIT_2D.neighborhood.axes, (2, 4))
    walk = Walk.of(Neighborhood(tuple(axes)), rows, heads=2, head_dim=64, has_bias=True)
    # Parts between two others are alike.
    assert walk.axes[0].part_of.tolist() == [0, 1]
    first, *middle, last = walk.axes[1].part_of
    assert {*middle}.isdisjoint({first, last})
    assert len({*middle}) == 1
    steps = walk.steps()
    assert steps.shape[:2] == (2, 3)
    steps = steps.reshape(6, -1, walk.num_fields)
    assert steps.shape[1] == walk.num_steps
    is_idle = steps[..., 1] == 0
    assert (is_idle.sum(axis=1) == 0).any()
    assert (is_idle.sum(axis=1) > 0).any() == (rows == "queries")
    for part in steps:
        working = part[part[:, 1] > 0]
        number, flags = working.T[:2]
        np.testing.assert_array_equal(np.unique(number), np.arange(walk.num_tiles))
        assert (np.diff(number) >= 0).all()
        np.testing.assert_array_equal(flags & IS_FIRST > 0, np.diff(number, prepend=-1) > 0)
        np.testing.assert_array_equal(flags & IS_LAST > 0, np.diff(number, append=-1) != 0)
        # The others come last, with the blocks of the last one, so that nothing is copied for them.
        idle = part[len(working) :]
        np.testing.assert_array_equal(idle[:, 2:], np.repeat(working[-1:, 2:], len(idle), axis=0))


@pytest.mark.parametrize("name", ["2d-everything", "3d-causal-dilation", "1d-blocked"])
def test_maps_are_unpacked_as_they_were_packed(name):
    from natjax.kernels.backends.mosaic_tpu.large import packing
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    (neighborhood,) = (p.neighborhood for p in PROBLEMS if p.name == name)
    walk = Walk.of(neighborhood, "queries", heads=5, head_dim=32, has_bias=False)
    shape = (1, neighborhood.num_tokens, 5, 30)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    packed = packing.as_map(jnp.asarray(x), walk, "queries")
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


@pytest.mark.parametrize("rows", ["queries", "keys"])
@pytest.mark.parametrize(
    ("problem", "parts"),
    [
        pytest.param(problem, parts, id=problem.name)
        for problem, parts in [
            *((p, (1,) * len(p.shape)) for p in PROBLEMS if p.rpb),
            (SPLIT_3D, (1, 2, 3)),
        ]
    ],
)
def test_blocks_of_biases_hold_that_of_every_pair(problem, parts, rows, few_logits):
    from natjax.kernels.backends.mosaic_tpu.large.axis import axis_masks
    from natjax.kernels.backends.mosaic_tpu.large.walk import IS_MASKED, IS_PLAIN, Walk

    neighborhood = Neighborhood(tuple(map(in_parts, problem.neighborhood.axes, parts)))
    walk = Walk.of(neighborhood, rows, heads=1, head_dim=128, has_bias=True)
    sizes = [2 * axis.window.kernel_size - 1 for axis in walk.axes]
    numbers = np.arange(1, 1 + np.prod(sizes), dtype=np.float32)
    table = np.asarray(walk.biases.table(jnp.asarray(numbers)[None], 1.0))[0]
    assert table.shape[1:] == (*walk.biases.entries, walk.biases.width, walk.biases.lanes)
    steps = walk.steps().reshape(-1, walk.num_fields)
    for step in steps[steps[:, 1] & (IS_MASKED | IS_PLAIN) > 0]:
        found = _biases_of(walk, step, table)
        seen, distances = np.ones((1, 1), bool), []
        for i, axis in enumerate(walk.axes):
            window = axis.window
            row = step[3 + i] * axis.tile + np.arange(axis.tile)
            column = step[3 + len(sizes) + i] - axis.shift + np.arange(axis.chunk)
            see = axis_masks(axis).seen[step[3 + 2 * len(sizes) + i]]
            seen = np.kron(seen, see).astype(bool)
            # Of the first key at hand, from the first query at hand, both of one dilation group.
            first = window.key_range[0] - axis.frame.padding - window.query_range[0]
            sign = 1 if rows == "queries" else -1
            distance = sign * (column[None] - row[:, None]) + first // window.dilation
            distances.append(distance + window.kernel_size - 1)
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


def test_gradients_of_biases_are_summed_over_entries(mesh_of):
    from natjax.kernels.backends.mosaic_tpu.large.walk import Walk

    problem = BIAS(name="x", shape=(20, 40), kernel_size=(5, 9))
    walk = Walk.of(problem.neighborhood, "queries", heads=1, head_dim=128, has_bias=True)
    rng = np.random.default_rng(0)
    rpb = jnp.asarray(rng.standard_normal((2, 9 * 17)), jnp.float32)
    table = walk.biases.table(rpb, 1.0)
    other = jnp.asarray(rng.standard_normal(table.shape), jnp.float32)
    gradient = walk.biases.gradient(other)
    np.testing.assert_allclose(np.vdot(gradient, rpb), np.vdot(table, other), rtol=1e-4)
    # Devices have tables that differ, of which JAX keeps track unless kernels are interpreted.
    mesh = mesh_of((2,), ("x",), AxisType.Auto)
    of_device = jax.shard_map(walk.biases.gradient, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    np.testing.assert_allclose(jax.jit(of_device)(other), gradient, rtol=1e-5)
