"""Tiles and slabs: every window lies in its slab, and every query is computed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natjax.kernels import checks
from natjax.kernels.backends.xla import tiles
from natjax.kernels.neighborhood import AxisWindow


@st.composite
def cut_axes(draw):
    kernel_size = draw(st.integers(1, 9))
    dilation = draw(st.integers(1, 4))
    axis = AxisWindow(
        length=draw(st.integers(kernel_size * dilation, 60)),
        kernel_size=kernel_size,
        stride=draw(st.integers(1, kernel_size)),
        dilation=dilation,
        is_causal=draw(st.booleans()),
    )
    return tiles.axis_tiles(axis, draw(st.integers(1, axis.max_group_length)))


def tokens_of(cut):
    """Token of each query of each tile and of each key of its slab; those past the end are none."""
    first = ((cut.query_start, cut.size), (cut.key_start, cut.halo))
    positions = (start[:, None] + np.arange(size) for start, size in first)
    return (p * cut.window.dilation + cut.group[:, None] for p in positions)


@given(cut_axes())
def test_slabs_hold_the_window_of_every_query(cut):
    axis = cut.window
    queries, slabs = tokens_of(cut)
    assert queries.shape == (cut.count, cut.size)
    assert slabs.shape == (cut.count, cut.halo)
    assert cut.key_start.min() >= 0
    assert (cut.key_start + cut.halo).max() <= axis.max_group_length
    for query_tile, slab, start, end in zip(queries, slabs, cut.start, cut.end, strict=True):
        for query, first, stop in zip(query_tile, start, end, strict=True):
            if query < axis.length:
                expected = np.flatnonzero(axis.is_neighbor(query, np.arange(axis.length)))
                np.testing.assert_array_equal(slab[first:stop], expected)


@given(cut_axes())
def test_every_query_is_new_in_one_tile(cut):
    queries, _ = tokens_of(cut)
    new = queries[cut.is_new]
    assert sorted(new[new < cut.window.length]) == list(range(cut.window.length))


@given(cut_axes())
def test_tiles_of_a_kind_look_alike(cut):
    first, kind = cut.kinds()
    example = first[kind]
    np.testing.assert_array_equal(cut.start, cut.start[example])
    np.testing.assert_array_equal(cut.end, cut.end[example])
    shift = cut.key_start - cut.query_start
    np.testing.assert_array_equal(shift, shift[example])


def test_slabs_are_no_larger_than_the_windows_need():
    for length, size, halo in [(56, 8, 14), (28, 7, 13), (14, 7, 10), (7, 7, 7)]:
        assert tiles.axis_tiles(AxisWindow(length=length, kernel_size=7), size).halo == halo


@pytest.mark.parametrize(
    ("shape", "kernel_size", "dilation"),
    [((56, 56), 7, 1), ((56, 56), 7, 8), ((14, 14), 7, 2), ((4096,), 257, 1), ((8, 24, 24), 5, 1)],
)
def test_chosen_tiles_move_keys_a_few_times_not_k_times(shape, kernel_size, dilation):
    neighborhood = checks.neighborhood(shape, kernel_size, dilation=dilation)
    chosen = tiles.choose_tiles(neighborhood, overhead=64, most_logits=2**20)
    copies = np.prod([t.count * t.halo / t.window.length for t in chosen])
    assert copies < 6
    assert math.prod(t.size * t.halo for t in chosen) <= 2**20


def test_tiles_keep_to_their_most_logits_where_they_can():
    neighborhood = checks.neighborhood((256, 256), 80)
    for most in (2**22, 2**16, 2**10):
        chosen = tiles.choose_tiles(neighborhood, overhead=64, most_logits=most)
        logits = math.prod(t.size * t.halo for t in chosen)
        assert logits <= most or all(t.size == 1 for t in chosen)
