"""Tiles and slabs: every window lies in its slab, and cutting is undone exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows import frames

from natjax.kernels import checks
from natjax.kernels.backends.xla import tiles
from natjax.kernels.neighborhood import AxisWindow


@st.composite
def cut_axes(draw):
    axis = draw(frames(max_length=60, periodic=None))
    return tiles.axis_tiles(axis, draw(st.integers(1, axis.num_queries)))


def cut_tokens(cut):
    """Which token is where in the tiles and in the slabs; -1 is padding."""
    queries, keys = (jnp.asarray(x) + 1 for x in (cut.window.query_tokens, cut.window.key_tokens))
    cuts = tiles.split_queries(queries, 0, cut), tiles.split_keys(keys, 0, cut)
    return (np.asarray(x) - 1 for x in cuts)


@given(cut_axes())
def test_slabs_hold_the_window_of_every_query(cut):
    axis = cut.window
    queries, slabs = cut_tokens(cut)
    assert queries.shape == (cut.count, cut.size)
    assert slabs.shape == (cut.count, cut.halo)
    for query_tile, slab, start, end in zip(queries, slabs, cut.start[0], cut.end[0], strict=True):
        for query, first, stop in zip(query_tile, start, end, strict=True):
            if query >= 0:  # not padding
                slots = np.flatnonzero(axis.slot_is_visible(query, np.arange(axis.kernel_size)))
                np.testing.assert_array_equal(slab[first:stop], axis.neighbor(query, slots))


@given(cut_axes())
def test_bias_index_of_slab_slots(cut):
    axis = cut.window
    queries, slabs = cut_tokens(cut)
    index = cut.bias_index()[cut.shifts[1]]
    slot = np.arange(cut.halo)
    seen = (cut.start[0][..., None] <= slot) & (slot < cut.end[0][..., None])
    seen &= (queries >= 0)[:, :, None]
    expected = axis.bias_index(queries[:, :, None], slabs[:, None])
    np.testing.assert_array_equal(index[seen], expected[seen])


@given(cut_axes())
def test_tokens_of_tiles_and_slabs(cut):
    queries, slabs = cut_tokens(cut)
    for cuts, tokens in ((queries, cut.query_tokens[0]), (slabs, cut.key_tokens[0])):
        np.testing.assert_array_equal(tokens[cuts >= 0], cuts[cuts >= 0])


@given(cut_axes())
def test_queries_come_back(cut):
    x = jnp.arange(cut.window.num_queries * 3).reshape(cut.window.num_queries, 3)
    np.testing.assert_array_equal(tiles.merge_queries(tiles.split_queries(x, 0, cut), 0, cut), x)


def test_slabs_are_no_larger_than_the_windows_need():
    for length, size, halo in [(56, 8, 14), (28, 7, 13), (14, 7, 10), (7, 7, 7)]:
        assert tiles.axis_tiles(AxisWindow(length=length, kernel_size=7), size).halo == halo


@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation"),
    [((56, 56), 7, 1), ((56, 56), 7, 8), ((14, 14), 7, 2), ((4096,), 257, 1), ((8, 24, 24), 5, 1)],
)
def test_chosen_tiles_store_keys_a_few_times_not_k_times(shape, kernel_size, dilation):
    neighborhood = checks.neighborhood(shape, kernel_size, dilation=dilation)
    chosen = tiles.choose_tiles(neighborhood, overhead=64)
    copies = np.prod([t.count * t.halo / t.window.length for t in chosen])
    assert copies < 6
    assert chosen[0].count * chosen[0].halo / shape[0] <= 3


def test_cutting_is_transposed_without_scatter():
    cut = tiles.axis_tiles(AxisWindow(length=56, kernel_size=7), 8)
    pulled = jax.jit(lambda x: jax.vjp(lambda y: tiles.split_keys(y, 0, cut), x)[1](x_tiles))
    x_tiles = jnp.ones((cut.count, cut.halo, 4))
    text = pulled.lower(jnp.ones((56, 4))).compile().as_text()
    assert " scatter(" not in text
    counts = np.zeros(56)
    for start in cut.key_start:
        counts[start : start + cut.halo] += 1
    np.testing.assert_array_equal(pulled(jnp.ones((56, 4)))[0][:, 0], counts)
