"""The neighborhood against NATTEN's own masks, and the properties that define it."""

import dataclasses

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows import frames, parts, windows

from natjax.kernels import checks
from natjax.kernels.neighborhood import AxisWindow, Neighborhood


def test_every_legal_1d_window_of_natten_up_to_length_16():
    golden = goldens.load("ops_masks")
    assert len(golden["config"]) > 2000
    bounds = zip(golden["offset"], golden["offset"][1:], strict=False)
    for config, (begin, stop) in zip(golden["config"].tolist(), bounds, strict=True):
        length, kernel_size, stride, dilation, causal = config
        axis = AxisWindow(
            length=length,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            is_causal=bool(causal),
        )
        query = np.arange(length)
        np.testing.assert_array_equal(axis.neighbor(query, 0), golden["first"][begin:stop])
        count = axis.end(query) - axis.start(query)
        np.testing.assert_array_equal(count, golden["count"][begin:stop])


def test_dense_masks_of_natten_in_2d_and_3d():
    golden = goldens.load("ops_masks")
    records = goldens.record("ops_masks", "index")
    assert records
    for record in records:
        neighborhood = checks.neighborhood(
            record["shape"],
            record["kernel_size"],
            record["stride"],
            record["dilation"],
            record["is_causal"],
        )
        tokens = record["tokens"]
        expected = np.unpackbits(golden[record["key"]])[: tokens * tokens]
        np.testing.assert_array_equal(neighborhood.dense_mask(), expected.reshape(tokens, tokens))


@given(windows(periodic=None))
def test_same_on_ints_numpy_and_traced_arrays(axis):
    query, key = np.arange(axis.length)[:, None], np.arange(axis.length)[None]
    functions = (axis.is_neighbor, axis.bias_index)
    for function in functions:
        by_numpy = function(query, key)
        np.testing.assert_array_equal(jax.jit(function)(query, key), by_numpy)
    last = axis.length - 1
    assert axis.start(last) == jnp.asarray(axis.start(query))[last, 0]


@given(windows(causal=False, periodic=None))
def test_each_query_has_exactly_k_distinct_keys_of_its_dilation_group(axis):
    query = np.arange(axis.length)[:, None]
    keys = axis.neighbor(query, np.arange(axis.kernel_size)[None])
    assert axis.slot_is_visible(query, np.arange(axis.kernel_size)[None]).all()
    assert (keys >= 0).all()
    assert (keys < axis.length).all()
    steps = np.diff(keys, axis=1)
    assert ((steps == axis.dilation) | (steps == axis.dilation - axis.length)).all()
    assert all(len(set(row)) == axis.kernel_size for row in keys.tolist())
    assert (keys % axis.dilation == query % axis.dilation).all()


@given(windows(causal=False, stride=1))
def test_odd_windows_hold_the_nearest_keys(axis):
    if axis.kernel_size % 2 == 0:
        return
    for query in range(axis.length):
        keys = axis.neighbor(query, np.arange(axis.kernel_size))
        group = np.arange(query % axis.dilation, axis.length, axis.dilation)
        others = np.setdiff1d(group, keys)
        if others.size:
            # Shifted windows at a border are still the nearest that fit.
            inside = np.abs(group - query)
            assert np.abs(keys - query).max() <= np.sort(inside)[axis.kernel_size - 1]


@given(windows(periodic=None))
def test_self_is_visible_and_every_key_is_seen(axis):
    mask = Neighborhood((axis,)).dense_mask()
    assert mask.diagonal().all()
    assert mask.any(axis=0).all()


@given(windows())
def test_queries_of_a_key_are_those_whose_windows_hold_it(axis):
    mask = Neighborhood((axis,)).dense_mask()
    for group in range(axis.dilation):
        step = slice(group, None, axis.dilation)
        seen = mask[step, step]
        first, last = axis.queries_of_keys(group)
        query = np.arange(len(seen))[:, None]
        np.testing.assert_array_equal(seen, (first <= query) & (query < last))
        assert (first < last).all()
        # In this order the programs that own keys walk over queries.
        assert (np.diff(first) >= 0).all()
        assert (np.diff(last) >= 0).all()


@given(windows(causal=True))
def test_causal_windows_end_at_the_query(axis):
    query = np.arange(axis.length)
    mask = Neighborhood((axis,)).dense_mask()
    assert not np.triu(mask, 1).any()
    if axis.stride == 1:
        keys_there_are = query // axis.dilation + 1
        np.testing.assert_array_equal(mask.sum(1), np.minimum(axis.kernel_size, keys_there_are))


@given(windows())
def test_bias_index_is_the_offset_and_stays_in_range(axis):
    query, key = np.ogrid[: axis.length, : axis.length]
    mask = axis.is_neighbor(query, key)
    index = np.where(mask, axis.bias_index(query, key), 0)
    assert (index >= 0).all()
    assert (index <= 2 * axis.kernel_size - 2).all()
    offset = np.where(mask, index - axis.kernel_size + 1, 0) * axis.dilation
    np.testing.assert_array_equal(np.where(mask, key - query, 0), offset)


@given(windows(periodic=None))
def test_dilation_is_interleaved_windows_without_it(axis):
    mask = Neighborhood((axis,)).dense_mask()
    expected = np.zeros_like(mask)
    for group in range(axis.dilation):
        part = AxisWindow(
            length=int(axis.group_length(group)),
            kernel_size=axis.kernel_size,
            stride=axis.stride,
            is_causal=axis.is_causal,
            is_periodic=axis.is_periodic,
        )
        step = slice(group, None, axis.dilation)
        expected[step, step] = Neighborhood((part,)).dense_mask()
    np.testing.assert_array_equal(mask, expected)


@given(st.integers(1, 12), st.integers(1, 4))
def test_stride_of_the_window_is_blocked_attention(kernel_size, blocks):
    axis = AxisWindow(length=kernel_size * blocks, kernel_size=kernel_size, stride=kernel_size)
    expected = np.kron(np.eye(blocks), np.ones((kernel_size, kernel_size)))
    np.testing.assert_array_equal(Neighborhood((axis,)).dense_mask(), expected.astype(bool))


@pytest.mark.parametrize("is_causal", [False, True])
def test_neighbor_table_lists_the_dense_mask(is_causal):
    neighborhood = checks.neighborhood(
        (5, 7), (3, 4), dilation=(1, 1), is_causal=(is_causal, False)
    )
    table, visible = neighborhood.neighbor_table()
    mask = np.zeros((neighborhood.num_tokens,) * 2, bool)
    for query, (keys, seen) in enumerate(zip(table, visible, strict=True)):
        mask[query, keys[seen]] = True
        assert len(set(keys[seen].tolist())) == seen.sum()
    np.testing.assert_array_equal(mask, neighborhood.dense_mask())


def test_interior_windows_are_translations_of_one_another():
    axis = AxisWindow(length=30, kernel_size=7)
    mask = Neighborhood((axis,)).dense_mask()
    for query in range(3, 26):
        np.testing.assert_array_equal(mask[query], np.roll(mask[15], query - 15))


@given(windows(causal=False, periodic=True), st.integers(0, 3))
def test_periodic_windows_are_those_of_an_axis_laid_out_three_times(axis, shift):
    """Far from its borders; the same keys in the same order, at the same distances."""
    if axis.length // axis.dilation % axis.stride:
        return  # the last queries that share a window are fewer, and look from the end of the axis
    long = dataclasses.replace(axis, length=3 * axis.length, is_periodic=False)
    query, slot = np.arange(axis.length)[:, None], np.arange(axis.kernel_size)[None]
    middle = query + axis.length
    np.testing.assert_array_equal(
        axis.neighbor(query, slot), long.neighbor(middle, slot) % axis.length
    )
    np.testing.assert_array_equal(
        axis.bias_index(query, axis.neighbor(query, slot)),
        long.bias_index(middle, long.neighbor(middle, slot)),
    )
    turned = (query + shift * axis.stride * axis.dilation) % axis.length
    np.testing.assert_array_equal(
        axis.neighbor(turned, slot),
        (axis.neighbor(query, slot) + shift * axis.stride * axis.dilation) % axis.length,
    )


@given(windows(periodic=None), st.integers(2, 4))
def test_finer_queries_have_the_window_of_the_token_they_lie_on(axis, ratio):
    fine = dataclasses.replace(axis, query_ratio=ratio)
    for method in ("dense_mask", "dense_bias_index", "neighbor_table"):
        coarse = np.asarray(getattr(Neighborhood((axis,)), method)())
        expected = np.repeat(coarse, ratio, axis=-2)
        np.testing.assert_array_equal(getattr(Neighborhood((fine,)), method)(), expected)


@given(frames(periodic=None))
def test_the_table_of_neighbors_points_into_the_keys_at_hand(axis):
    whole = dataclasses.replace(axis, queries=None, keys=None)
    table, visible = Neighborhood((axis,)).neighbor_table()
    tokens = axis.key_tokens[table]
    expected, seen = Neighborhood((whole,)).neighbor_table()
    part = slice(*axis.queries)
    np.testing.assert_array_equal(visible, seen[part])
    np.testing.assert_array_equal(tokens[visible], expected[part][seen[part]])


@given(parts())
def test_what_is_at_hand_is_a_part_of_the_whole(axis):
    """The length of the axis decides who sees whom, and not how much of it is at hand."""
    whole = Neighborhood((dataclasses.replace(axis, queries=None, keys=None),)).dense_mask()
    part = whole[slice(*axis.queries), slice(*axis.keys)]
    np.testing.assert_array_equal(Neighborhood((axis,)).dense_mask(), part)
    seen = np.flatnonzero(whole[slice(*axis.queries)].any(axis=0))
    assert axis.needed_keys == (seen[0], seen[-1] + 1)


@pytest.mark.parametrize("part", [(-1, 3), (3, 3), (2, 11)])
@pytest.mark.parametrize("name", ["queries", "keys"])
def test_what_is_at_hand_are_tokens(name, part):
    message = rf"{name} must be the first .* number 10; got \({part[0]}, {part[1]}\)"
    with pytest.raises(ValueError, match=message):
        AxisWindow(length=10, kernel_size=3, **{name: part})
