"""Blocks of a neighborhood: every pair that sees one another is in one block, and looks right."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natjax.kernels.neighborhood import AxisWindow, Neighborhood
from natjax.kernels.plan import blocks as blocks_module
from natjax.kernels.plan.blocks import Blocks
from natjax.kernels.plan.pattern import pattern_of
from natjax.kernels.plan.reach import (
    BY_COUNTING,
    num_blocks,
    reach_of,
    skipping_pays,
)
from natjax.kernels.plan.slots import slot_parts

HIDDEN = -1e30
ROLES = pytest.mark.parametrize("rows", ["queries", "keys"])


@st.composite
def cuts(draw):
    """A neighborhood of few tokens, and sides of tiles and chunks."""
    ndim = draw(st.integers(1, 3))
    longest = {1: 40, 2: 12, 3: 6}[ndim]
    axes = []
    for _ in range(ndim):
        kernel_size = draw(st.integers(1, min(7, longest)))
        dilation = draw(st.integers(1, min(4, longest // kernel_size)))
        axis = AxisWindow(
            length=draw(st.integers(kernel_size * dilation, longest)),
            kernel_size=kernel_size,
            stride=draw(st.integers(1, kernel_size)),
            dilation=dilation,
            is_causal=draw(st.booleans()),
        )
        axes.append(axis)
    side = st.sampled_from([1, 2, 3, 4, 6, 8] if ndim == 1 else [2, 3, 4, 8])
    tile, chunk = (tuple(draw(side) for _ in axes) for _ in range(2))
    return tuple(axes), tile, chunk


def build(cut, rows, *, whole_chunks=False):
    """Built here, since run-time checks draw random numbers, which a strategy must not."""
    axes, tile, chunk = cut
    neighborhood = Neighborhood(axes)
    return neighborhood, Blocks.of(neighborhood, rows, tile, chunk, whole_chunks=whole_chunks)


def block(blocks, number, chunk):
    """One block, as a kernel sees it."""
    tile = blocks.tile_at(number)
    rows, columns = tile.rows(), tile.columns(chunk)
    return {
        "row": tile.tokens(rows),
        "column": tile.tokens(columns),
        "seen": tile.is_neighbor(rows, columns),
        "slot": tile.slot(rows, columns),
    }


def evaluate(blocks):
    """All blocks, ``[tiles, chunks, ...]``; in NumPy, for which nothing need be compiled."""
    with mock.patch.object(blocks_module, "jnp", np):
        rows = [
            jax.tree.map(lambda *x: np.stack(x), *(block(blocks, t, c) for c in range(chunks)))
            for chunks in [blocks.num_chunks]
            for t in range(blocks.num_tiles)
        ]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def pairs(evaluated, rows):
    """Query and key token of each entry of each block, wherever they see one another or not."""
    shape = evaluated["seen"].shape
    row = np.broadcast_to(evaluated["row"][0][..., :, None], shape)
    column = np.broadcast_to(evaluated["column"][0][..., None, :], shape)
    return (row, column) if rows == "queries" else (column, row)


@ROLES
@given(cut=cuts(), whole_chunks=st.booleans())
def test_every_pair_that_sees_one_another_is_in_one_block_once(rows, cut, whole_chunks):
    neighborhood, blocks = build(cut, rows, whole_chunks=whole_chunks)
    evaluated = evaluate(blocks)
    query, key = (x[evaluated["seen"]] for x in pairs(evaluated, rows))
    counts = np.zeros((neighborhood.num_tokens,) * 2, int)
    np.add.at(counts, (query, key), 1)
    np.testing.assert_array_equal(counts, neighborhood.dense_mask())
    # Each token is a row of one tile.
    token, exists = (x[:, 0] for x in evaluated["row"])
    np.testing.assert_array_equal(np.sort(token[exists]), np.arange(neighborhood.num_tokens))
    # And what does not exist sees nothing, though its number may be that of a token.
    row_exists, column_exists = evaluated["row"][1], evaluated["column"][1]
    assert not (evaluated["seen"] & ~row_exists[..., :, None]).any()
    assert not (evaluated["seen"] & ~column_exists[..., None, :]).any()


def test_blocks_are_the_same_in_a_traced_program():
    axes = (
        AxisWindow(length=13, kernel_size=3, stride=2, dilation=3),
        AxisWindow(length=9, kernel_size=4, is_causal=True),
    )
    for rows in ("queries", "keys"):
        blocks = Blocks.of(Neighborhood(axes), rows, (2, 4), (4, 8))
        numbers = jnp.arange(blocks.num_tiles), jnp.arange(blocks.num_chunks)
        one = functools.partial(block, blocks)
        run = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
        jax.tree.map(np.testing.assert_array_equal, run(*numbers), evaluate(blocks))


@ROLES
@given(cut=cuts())
def test_slots_are_those_of_the_neighbor_table(rows, cut):
    neighborhood, blocks = build(cut, rows)
    evaluated = evaluate(blocks)
    seen = evaluated["seen"]
    query, key = (x[seen] for x in pairs(evaluated, rows))
    table, visible = neighborhood.neighbor_table()
    np.testing.assert_array_equal(table[query, evaluated["slot"][seen]], key)
    assert visible[query, evaluated["slot"][seen]].all()


@given(cut=cuts())
def test_slots_are_numbers_of_keys_less_those_of_queries(cut):
    neighborhood, _ = build(cut, "queries")
    queries, keys = slot_parts(neighborhood)
    table, visible = neighborhood.neighbor_table()
    slots = np.broadcast_to(np.arange(neighborhood.num_neighbors), visible.shape)
    np.testing.assert_array_equal((keys[table] - queries[:, None])[visible], slots[visible])


@pytest.mark.parametrize("has_bias", [True, False])
@given(cut=cuts(), rows=st.sampled_from(["queries", "keys"]))
@settings(max_examples=12)  # each example compiles programs of its own
def test_the_table_is_the_dense_mask_and_bias(rows, has_bias, cut):
    neighborhood, blocks = build(cut, rows)
    evaluated = evaluate(blocks)
    rpb = np.random.default_rng(0).standard_normal((2, *neighborhood.bias_shape)).astype(np.float32)
    table = pattern_of(blocks).table(jnp.asarray(rpb) if has_bias else None, HIDDEN, 1.5)
    seen = evaluated["seen"]
    query, key = (np.where(seen, x, 0) for x in pairs(evaluated, rows))
    bias = 1.5 * rpb[:, *(index[query, key] for index in neighborhood.dense_bias_index())]
    expected = np.where(seen, bias if has_bias else np.zeros((1, *seen.shape)), HIDDEN)
    actual = np.asarray(table)[:, pattern_of(blocks).kind]
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected.astype(np.float32))


@given(cut=cuts(), rows=st.sampled_from(["queries", "keys"]))
@settings(max_examples=10)  # each example compiles programs of its own
def test_bias_gradient_is_the_transpose_of_the_table(rows, cut):
    neighborhood, blocks = build(cut, rows)
    pattern = pattern_of(blocks)
    rng = np.random.default_rng(0)
    rpb = jnp.asarray(rng.standard_normal((2, *neighborhood.bias_shape)), jnp.float32)
    table = pattern.table(rpb, 0.0, 1.0)
    cotangent = jnp.asarray(rng.standard_normal(table.shape), jnp.float32)
    gradient = pattern.bias_gradient(cotangent)
    assert gradient.shape == rpb.shape
    products = np.float64(table) * np.float64(cotangent), np.float64(rpb) * np.float64(gradient)
    scale = 1 + np.abs(products[0]).sum()
    assert abs(products[0].sum() - products[1].sum()) <= 1e-5 * scale


@ROLES
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_longer_axes_have_more_tiles_of_the_same_kinds(rows, dilation, is_causal):
    kinds = []
    for length in (240, 480):
        axis = AxisWindow(length=length, kernel_size=7, dilation=dilation, is_causal=is_causal)
        pattern = pattern_of(Blocks.of(Neighborhood((axis,)), rows, (8,), (16,)))
        assert len(pattern.kind) == length // 8
        assert sorted(set(pattern.kind)) == list(range(pattern.num_kinds))
        kinds.append(pattern.num_kinds)
    assert kinds[0] == kinds[1] <= 4


@ROLES
@given(cut=cuts())
def test_chunks_that_are_wholly_seen_or_hidden(rows, cut):
    _, blocks = build(cut, rows)
    seen, pattern = evaluate(blocks)["seen"], pattern_of(blocks)
    np.testing.assert_array_equal(pattern.is_whole[pattern.kind], seen.all(axis=(-2, -1)))
    np.testing.assert_array_equal(pattern.is_hidden[pattern.kind], ~seen.any(axis=(-2, -1)))


@ROLES
@given(cut=cuts(), whole_chunks=st.booleans())
def test_a_tile_reaches_the_chunks_that_are_not_hidden_and_no_other(rows, cut, whole_chunks):
    _, blocks = build(cut, rows, whole_chunks=whole_chunks)
    met = evaluate(blocks)["seen"].any(axis=(-2, -1))
    for tile, boxes in enumerate(reach_of(blocks)):
        reached = np.zeros([axis.num_chunks for axis in blocks.axes], bool)
        reached[tuple(slice(first, first + count) for first, count in boxes)] = True
        np.testing.assert_array_equal(reached.ravel(), met[tile])
    assert num_blocks(blocks) == met.sum()


@ROLES
@given(cut=cuts(), axis=st.integers(0, 2))
def test_pieces_of_tiles_reach_what_their_rows_see(rows, cut, axis):
    _, blocks = build(cut, rows)
    axis %= len(blocks.axes)
    pieces = [1] * len(blocks.axes)
    pieces[axis] = 2 if blocks.axes[axis].tile % 2 == 0 else blocks.axes[axis].tile
    seen = evaluate(blocks)["seen"]
    tile = [x.tile for x in blocks.axes]
    seen = seen.reshape(*seen.shape[:2], *tile, -1)
    halves = np.split(seen, pieces[axis], axis=2 + axis)
    met = sum(x.reshape(*x.shape[:2], -1).any(axis=-1).sum() for x in halves)
    assert num_blocks(blocks, pieces) == met


def test_skipping_pays_where_it_spares_more_than_finding_chunks_costs():
    """Of a long axis all but the tiles at its ends meet as many chunks."""
    for length, lookup, pays in (
        (64, BY_COUNTING, True),
        (128, BY_COUNTING, True),
        (640, BY_COUNTING, False),
    ):
        axis = AxisWindow(length=length, kernel_size=31)
        blocks = Blocks.of(Neighborhood((axis,) * 2), "queries", (8, 8), (8, 8), whole_chunks=True)
        assert skipping_pays(blocks, lookup) == pays, (length, lookup)


@ROLES
@given(cut=cuts())
def test_whole_chunks_end_inside_an_axis_that_is_long_enough(rows, cut):
    """And there are as many as there would be otherwise."""
    _, usual = build(cut, rows)
    _, blocks = build(cut, rows, whole_chunks=True)
    assert blocks.num_chunks == usual.num_chunks
    for axis in blocks.axes:
        _, _, start = axis.locate(np.arange(axis.num_tiles))
        width, positions = axis.num_chunks * axis.chunk, axis.window.max_group_length
        assert start.min() >= 0
        assert (start + width).max() <= max(positions, width)


def test_chunks_of_the_smallest_slabs_may_end_outside():
    """So that the test above can fail: the last tile's slab of 9 starts at 5 of 14 columns."""
    axis = AxisWindow(length=14, kernel_size=7)
    ends = []
    for whole_chunks in (False, True):
        cut = ((axis,), (4,), (4,))
        _, blocks = build(cut, "queries", whole_chunks=whole_chunks)
        (along,) = blocks.axes
        _, _, start = along.locate(np.arange(along.num_tiles))
        ends.append(int(start.max()) + along.num_chunks * along.chunk)
    assert ends[0] > 14 == ends[1]


@ROLES
@pytest.mark.parametrize("part", ["queries", "keys"])
def test_blocks_of_a_part_of_an_axis_are_refused(rows, part):
    axis = AxisWindow(length=14, kernel_size=7, **{part: (0, 7)})
    with pytest.raises(ValueError, match=rf"queries and keys .* must be None.*{part}=\(0, 7\)"):
        Blocks.of(Neighborhood((axis,)), rows, (4,), (4,))


def test_kinds_of_axes_multiply():
    axis = AxisWindow(length=56, kernel_size=7)
    one = pattern_of(Blocks.of(Neighborhood((axis,)), "queries", (8,), (8,)))
    two = pattern_of(Blocks.of(Neighborhood((axis, axis)), "queries", (8, 8), (8, 8)))
    assert two.num_kinds == one.num_kinds**2 == 9
    assert len(two.kind) == 49
    # Tiles away from the borders are of one kind.
    interior = two.kind.reshape(7, 7)[1:-1, 1:-1]
    assert (interior == interior[0, 0]).all()


@ROLES
@given(cut=cuts())
def test_slabs_are_as_small_as_they_can_be(rows, cut):
    """No smaller slab, wherever it starts, holds what the rows of every tile meet."""
    neighborhood, blocks = build(cut, rows)
    for window, axis in zip(neighborhood.axes, blocks.axes, strict=True):
        mask = Neighborhood((window,)).dense_mask()
        mask = mask if rows == "queries" else mask.T
        seen = [
            (tile, np.flatnonzero(part[tile : tile + axis.tile].any(axis=0)))
            for group in range(window.dilation)
            for part in [mask[group :: window.dilation, group :: window.dilation]]
            for tile in range(0, len(part), axis.tile)
        ]

        def holds(halo, offset, axis=axis, seen=seen):
            starts = [np.clip(t + offset, 0, axis.window.max_group_length - halo) for t, _ in seen]
            return all(
                start <= x.min() and x.max() < start + halo
                for start, (_, x) in zip(starts, seen, strict=True)
            )

        assert holds(axis.halo, axis.offset)
        n = window.max_group_length
        assert not any(holds(axis.halo - 1, offset) for offset in range(-n, n + 1))
