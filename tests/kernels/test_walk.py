"""Walks over boxes: what is read and added, and derivatives that are walks again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.kernels.backends.xla.walk import Boxes, Walk

STARTS = np.array([[0, 0], [2, 1], [3, 0], [1, 2]])
OVERLAPPING = Boxes((3, 2), STARTS)
PARTS = Boxes((2, None), np.array([[4, 0], [0, 0], [6, 0], [2, 0]]), is_partition=True)


def step(tile, x, part, shared):
    mixed = jnp.sin(x).sum(axis=0)[None] * part * shared
    return mixed * jnp.asarray(1 + tile, x.dtype), jnp.cos(x) * shared.sum()


def walk_of(at_once, dtype="float64"):
    """Reads overlapping boxes, parts and a whole array; adds to parts and overlapping boxes."""
    outputs = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in ((8, 2), (6, 4)))
    return Walk(
        function=step,
        reads=(OVERLAPPING, PARTS, Boxes.whole(2)),
        writes=(PARTS, OVERLAPPING),
        outputs=outputs,
        tiles=4,
        at_once=at_once,
    )


def by_hand(x, part, shared):
    """The same by slices, differentiated by JAX."""
    out, added = jnp.zeros((8, 2), x.dtype), jnp.zeros((6, 4), x.dtype)
    for tile, (start, first) in enumerate(zip(STARTS, PARTS.starts, strict=True)):
        box = tuple(slice(s, s + n) for s, n in zip(start, OVERLAPPING.sizes, strict=True))
        rows = slice(first[0], first[0] + 2)
        a, b = step(tile, x[box], part[rows], shared)
        out, added = out.at[rows].add(a), added.at[box].add(b)
    return out, added


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s)) for s in ((6, 4), (8, 2), (2, 2))]


def assert_close(actual, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    jax.tree.map(close, actual, expected)


@pytest.mark.oldest
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_walk_is_a_loop_over_slices(at_once, x64, arrays):
    assert_close(walk_of(at_once)(*arrays), by_hand(*arrays))


def squares(function, *arrays):
    return sum(jnp.sum(x**2) for x in function(*arrays))


def derivatives(function, arrays, along):
    """First derivatives in either mode, and second ones along a direction in all four orders."""

    def loss(*arrays):
        return squares(function, *arrays)

    def slope(*arrays):
        return jax.jvp(loss, arrays, along)[1]

    everything = (0, 1, 2)
    gradient = jax.grad(loss, everything)

    def projected(*arrays):
        return sum(jnp.vdot(x, y) for x, y in zip(gradient(*arrays), along, strict=True))

    return (
        gradient(*arrays),
        slope(*arrays),
        jax.jvp(gradient, arrays, along)[1],
        jax.grad(projected, everything)(*arrays),
        jax.grad(slope, everything)(*arrays),
        jax.jvp(slope, arrays, along)[1],
    )


@pytest.mark.oldest
def test_derivatives_of_first_and_second_order(x64, arrays):
    run = jax.jit(derivatives, static_argnums=0)
    along = tuple(map(jnp.cos, arrays))
    assert_close(run(walk_of(2), tuple(arrays), along), run(by_hand, tuple(arrays), along))


def pull_from_results(tile, boxes, results, cotangents):
    """Cotangents of `step`, of which those of the parts follow from the results."""
    x, part, shared = boxes
    d_x, _, d_shared = jax.vjp(functools.partial(step, tile), x, part, shared)[1](cotangents)
    return [d_x, (results[0] / part * cotangents[0]), d_shared]


@pytest.mark.oldest
def test_cotangents_can_be_given_that_use_results(x64, arrays):
    run = jax.jit(derivatives, static_argnums=0)
    along = tuple(map(jnp.cos, arrays))
    walk = dataclasses.replace(walk_of(2), pull=pull_from_results)
    assert_close(run(walk, tuple(arrays), along), run(by_hand, tuple(arrays), along))


def test_cotangents_that_are_given_are_used(x64, arrays):
    def doubled(*args):
        return [2 * x for x in pull_from_results(*args)]

    walk = dataclasses.replace(walk_of(2), pull=doubled)
    twice, once = (
        jax.grad(functools.partial(squares, f), (0, 1, 2))(*arrays) for f in (walk, by_hand)
    )
    assert_close(twice, tuple(2 * x for x in once))


@pytest.mark.oldest
def test_vmap(x64, arrays):
    x, part, shared = arrays
    batch = jnp.stack([x, 2 * x, 3 * x])
    mapped = (
        jax.vmap(jax.grad(functools.partial(squares, f)), (0, None, None))
        for f in (walk_of(2), by_hand)
    )
    assert_close(*(f(batch, part, shared) for f in mapped))


def test_half_precision_is_added_in_float32(arrays):
    """Each of many boxes adds less than half precision would keep of it."""
    count = 600
    boxes = Boxes((1,), np.zeros((count, 1), int))
    walk = Walk(
        function=lambda _, x: (x,),
        reads=(boxes,),
        writes=(boxes,),
        outputs=(jax.ShapeDtypeStruct((1,), jnp.bfloat16),),
        tiles=count,
        at_once=1,
    )
    ones = jnp.ones((1,), jnp.bfloat16)
    assert walk(ones)[0][0] == 600
    assert jax.grad(lambda x: walk(x)[0].astype(jnp.float32).sum())(ones)[0] == 600


@pytest.mark.optimised
def test_a_gradient_adds_to_boxes_in_place():
    """No step of the loop makes an array of full size, in either direction."""
    rows = 4096
    boxes = Boxes((8, None), np.stack([np.arange(0, rows - 8, 4), np.zeros(1022, int)], axis=1))
    walk = Walk(
        function=lambda _, x: (jnp.sin(x),),
        reads=(boxes,),
        writes=(boxes,),
        outputs=(jax.ShapeDtypeStruct((rows, 64), jnp.float32),),
        tiles=1022,
        at_once=1,
    )
    x = jnp.ones((rows, 64))
    compiled = jax.jit(jax.grad(lambda x: jnp.sum(walk(x)[0] ** 2))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * x.nbytes
    body = compiled.as_text().split("ENTRY")[0]
    assert "dynamic-update-slice" in body
    assert " add(f32[4096,64]" not in body
