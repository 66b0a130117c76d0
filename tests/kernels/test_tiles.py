"""Tiles and slabs: every window lies in its slab, and every query is computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows import frames

import natjax
from natjax.kernels import checks
from natjax.kernels.backends.xla import layout, tiles
from natjax.kernels.neighborhood import AxisWindow
from natjax.kernels.plan.frame import axis_frame


@st.composite
def cut_axes(draw):
    axis = draw(frames(max_length=60, periodic=None))
    return tiles.axis_tiles(axis, draw(st.integers(1, axis_frame(axis).query_positions)))


def cut_tokens(cut):
    """Which token is where in the tiles and in the slabs; -1 is padding."""
    queries, keys = (
        jnp.asarray(x + 1)[None, :, None, None]
        for x in (cut.window.query_tokens, cut.window.key_tokens)
    )
    arrays = (
        (layout.place_queries(queries, (cut,)), layout.query_boxes((cut,))),
        (layout.place_keys(keys, (cut,)), layout.key_boxes((cut,))),
    )
    return (
        np.stack([np.ravel(boxes.read(x, start)) for start in boxes.starts]) - 1
        for x, boxes in arrays
    )


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
    slot = np.arange(cut.halo)
    index = cut.bias_shift[:, None, None] + slot - np.arange(cut.size)[:, None]
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
    x = jnp.arange(cut.window.num_queries * 3).reshape(1, -1, 1, 3)
    placed = layout.place_queries(x, (cut,))
    np.testing.assert_array_equal(layout.merge_queries(placed, (cut,)), x)


@given(cut_axes())
def test_every_query_is_new_in_one_tile(cut):
    queries, _ = cut_tokens(cut)
    new = queries[cut.is_new]
    assert sorted(new[new >= 0]) == list(cut.window.query_tokens)


@given(cut_axes())
def test_tiles_of_a_kind_look_alike(cut):
    first, kind = cut.kinds()
    example = first[kind]
    np.testing.assert_array_equal(cut.start, cut.start[:, example])
    np.testing.assert_array_equal(cut.end, cut.end[:, example])
    np.testing.assert_array_equal(cut.bias_shift, cut.bias_shift[example])


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


@pytest.mark.optimised
@pytest.mark.parametrize(("shape", "dilation"), [((7, 8), 1), ((14, 14), 2)])
def test_unfused_ops_compile_where_a_group_has_one_window(shape, dilation):
    """XLA's compiler for CPUs failed where it fused reading the slot with reading its keys."""
    x, rpb = jnp.ones((1, *shape, 3, 32)), jnp.zeros((3, 13, 13))
    bias = None if dilation == 1 else rpb
    logits = natjax.na2d_qk(x, x, 7, dilation=dilation, rpb=bias, implementation="xla")
    out = natjax.na2d_av(jax.nn.softmax(logits), x, 7, dilation=dilation, implementation="xla")
    np.testing.assert_allclose(out, x, atol=1e-5)
