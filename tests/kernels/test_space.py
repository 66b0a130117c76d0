"""Tokens split over devices: equal to one device, and nothing but halos is exchanged."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import natjax

OPS = {1: natjax.na1d, 2: natjax.na2d, 3: natjax.na3d}


@pytest.fixture
def mesh(mesh_of):
    return mesh_of((2, 4), ("y", "x"), AxisType.Auto)


def case(shape, axes, kernel_size, *, slow=False, **options):
    marks = [pytest.mark.slow] if slow else []
    name = "-".join(
        [f"{shape}", f"{axes}", f"{kernel_size}", *(f"{k}={options[k]}" for k in options)]
    )
    return pytest.param(shape, axes, {"kernel_size": kernel_size, **options}, marks=marks, id=name)


def drawn(shape, window, dtype=np.float64):
    """Queries, keys, values, biases."""
    rng = np.random.default_rng(0)
    ratios = np.broadcast_to(window.get("query_ratio", 1), len(shape))
    query = rng.standard_normal((2, *(np.asarray(shape) * ratios), 2, 3))
    key, value = rng.standard_normal((2, 2, *shape, 1, 3))
    kernel = np.broadcast_to(window["kernel_size"], len(shape))
    rpb = rng.standard_normal((2, *(2 * k - 1 for k in kernel)))
    return [jnp.asarray(x, dtype) for x in (query, key, value, rpb)]


def outputs_and_gradients(window, query, key, value, rpb, *more):
    def run(query, key, value, rpb):
        kwargs = {"rpb": rpb, "return_lse": True, **window}
        if more:
            kwargs["key_mask"] = more[0]
        return OPS[query.ndim - 3](query, key, value, **kwargs)

    outputs, pull = jax.vjp(run, query, key, value, rpb)
    return outputs, pull(jax.tree.map(jnp.cos, outputs))


def assert_equal(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axes", "window"),
    [
        # A window longer than a part: halos come from several neighbors.
        case((24,), ("x",), 10, stride=3),
        case((24,), ("x",), 5, dilation=4, is_periodic=True),
        case((6, 16), ("y", "x"), (3, 4), dilation=(1, 3), is_causal=(True, False)),
        case((4, 8), (None, "x"), 4, is_periodic=(False, True), query_ratio=2),
        case((3, 4, 8), (None, "y", "x"), (2, 3, 7), is_causal=(True, False, False)),
        *(
            case((24,), ("x",), kernel, dilation=dilation, stride=stride, **more, slow=True)
            for kernel in (1, 4, 7, 24)
            for dilation in (1, 2, 3)
            for stride in (1, 2, 4)
            for more in ({}, {"is_causal": True}, {"is_periodic": True})
            if kernel * dilation <= 24 and stride <= kernel
        ),
        *(
            case((8, 12), axes, (4, 5), slow=True, **more)
            for axes in (("y", None), (None, "x"), ("y", "x"), ("x", "y"))
            for more in (
                {"dilation": 2},
                {"stride": (3, 2)},
                {"is_periodic": (True, False), "is_causal": (False, True)},
                {"is_periodic": True, "query_ratio": (1, 2)},
            )
        ),
    ],
)
def test_devices_that_each_have_a_part_give_what_one_does(shape, axes, window, mesh, x64):
    arrays = drawn(shape, window)
    run = jax.jit(functools.partial(outputs_and_gradients, window))
    expected = run(*arrays)
    with natjax.sharding.space(*axes, mesh=mesh):
        actual = run(*arrays)
    assert_equal(actual, expected)
    place = NamedSharding(mesh, P(None, *axes))
    assert actual[0][0].sharding.is_equivalent_to(place, len(shape) + 3)


def test_what_else_an_op_takes(mesh, x64):
    """A mask, additional keys, sinks, a soft cap and dropout are those of the whole map."""
    query, key, value, rpb = drawn((4, 16), {"kernel_size": 3})
    rng = np.random.default_rng(1)
    options = {
        "key_mask": jnp.asarray(rng.random((2, 4, 16)) < 0.7),
        "additional_keys": jnp.asarray(rng.standard_normal((2, 2, 1, 3))),
        "additional_values": jnp.asarray(rng.standard_normal((2, 2, 1, 3))),
        "sinks": jnp.ones(2),
        "dropout_key": jax.random.key(0),
    }
    # What is hidden is nan, and has no gradient.
    key = jnp.where(options["key_mask"][..., None, None], key, jnp.nan)

    @jax.jit
    def run(query, key, value, rpb, options):
        def op(*arrays):
            window = {"kernel_size": 3, "dropout_rate": 0.5, "logit_soft_cap": 2.0}
            return natjax.na2d(*arrays[:3], rpb=arrays[3], **window, **options)

        out, pull = jax.vjp(op, query, key, value, rpb)
        return out, pull(jnp.cos(out))

    expected = run(query, key, value, rpb, options)
    assert np.isfinite(np.asarray(expected[1][1])).all()
    with natjax.sharding.space("y", "x", mesh=mesh):
        assert_equal(run(query, key, value, rpb, options), expected)


@pytest.mark.oldest
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto, AxisType.Manual])
def test_every_kind_of_mesh_axes(kind, mesh_of, x64):
    """Batch over one axis of the mesh, tokens over the other."""
    window = {"kernel_size": 4, "is_causal": True}
    arrays = drawn((16,), window)
    run = functools.partial(outputs_and_gradients, window)
    expected = jax.jit(run)(*arrays)
    is_manual = kind == AxisType.Manual
    mesh = mesh_of((2, 4), ("data", "x"), AxisType.Auto if is_manual else kind)
    split, whole = P("data", "x"), P()
    with jax.set_mesh(mesh), natjax.sharding.space("x"):
        if is_manual:
            specs = (split, split, split, whole)
            run = jax.shard_map(run, in_specs=specs, out_specs=((split, split), specs))
        places = [NamedSharding(mesh, spec) for spec in (split, split, split, whole)]
        actual = jax.jit(run)(*map(jax.device_put, arrays, places))
    assert_equal(actual, expected)


@pytest.mark.parametrize("is_placed", [False, True])
def test_a_mesh_of_explicit_axes_that_is_not_set(is_placed, mesh_of):
    """Arrays may be on one device, or laid out over the mesh, in another way too."""
    mesh = mesh_of((2, 4), ("y", "x"), AxisType.Explicit)
    query, *_ = drawn((16,), {"kernel_size": 3}, np.float32)
    place = NamedSharding(mesh, P("y"))
    x = jax.device_put(query, place) if is_placed else query
    with natjax.sharding.space("x", mesh=mesh):
        actual = natjax.na1d(x, x, x, kernel_size=3)
    expected = natjax.na1d(query, query, query, kernel_size=3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("axes", "window", "halos"),
    [
        pytest.param(
            (None, "x"), {"kernel_size": 5}, (0, 4), id="one-axis", marks=pytest.mark.slow
        ),
        pytest.param(
            ("y", "x"), {"kernel_size": (3, 4), "dilation": (1, 2)}, (2, 6), id="two-axes"
        ),
        pytest.param(
            ("y", None),
            {"kernel_size": 3, "is_causal": True},
            (2, 0),
            id="causal",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_exchanged_is_halos(axes, window, halos, mesh):
    """Bytes that a device receives, as docs/ops.md has them; and as many back for gradients."""
    shape = (16, 32)
    arrays = drawn(shape, window, np.float32)
    places = [NamedSharding(mesh, P(None, *axes))] * 3 + [NamedSharding(mesh, P())]
    with natjax.sharding.space(*axes, mesh=mesh):

        def forward(*arrays):
            return outputs_and_gradients(window, *arrays)[0]

        programs = [
            jax.jit(function, in_shardings=tuple(places)).lower(*arrays).compile().as_text()
            for function in (forward, functools.partial(outputs_and_gradients, window))
        ]
    parts = [1 if name is None else mesh.shape[name] for name in axes]
    rows, columns = (n // p for n, p in zip(shape, parts, strict=True))
    tokens = halos[0] * columns + (rows + halos[0]) * halos[1]
    halo_bytes = 2 * tokens * arrays[1].nbytes // math.prod(shape)
    for program, times in zip(programs, (1, 2), strict=True):
        assert not re.search(r"all-gather|all-to-all|reduce-scatter", program)
        assert exchanged(program) == times * halo_bytes


def exchanged(program):
    """Bytes of the results of all collective-permutes of a program, which are float32."""
    found = re.findall(r"= \(?f32\[([\d,]+)\]\S* .*?collective-permute(?:-start)?\(", program)
    return sum(4 * math.prod(map(int, dims.split(","))) for dims in found)


@pytest.mark.slow
def test_a_model_takes_it(mesh, x64):
    """Every level of it, forward and backward; convolutions and norms are the compiler's."""
    model = natjax.NAT(
        natjax.NATConfig(dim=4, depths=(1, 2), num_heads=(1, 2), kernel_size=3, num_classes=3),
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 64, 3)))

    @jax.jit
    def run(state, x):
        loss = lambda state: jnp.sum(jnp.cos(nnx.merge(graph, state)(x)))  # noqa: E731
        return nnx.merge(graph, state)(x), jax.grad(loss)(state)

    expected = run(state, x)
    with jax.set_mesh(mesh), natjax.sharding.space("y", "x"):
        placed = jax.device_put(x, NamedSharding(mesh, P(None, "y", "x")))
        assert_equal(run(state, placed), expected)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_published_model_at_an_image_of_2_megapixels(mesh_of):
    """NAT-Tiny at 1024x2048, split 2x2: forward, and gradients of all parameters."""
    graph, state = nnx.split(natjax.create_model("nat_tiny", rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1024, 2048, 3)), jnp.float32)

    @jax.jit
    def run(state, x):
        def loss(state):
            logits = nnx.merge(graph, state)(x)
            return jnp.sum(jnp.cos(logits)), logits

        return jax.grad(loss, has_aux=True)(state)

    gradients, logits = run(state, x)
    mesh = mesh_of((2, 2), ("y", "x"), AxisType.Auto)
    with jax.set_mesh(mesh), natjax.sharding.space("y", "x"):
        placed = jax.device_put(x, NamedSharding(mesh, P(None, "y", "x")))
        split_gradients, split_logits = run(state, placed)
    np.testing.assert_allclose(split_logits, logits, rtol=1e-4, atol=1e-5)
    for actual, expected in zip(*map(jax.tree.leaves, (split_gradients, gradients)), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize(
    ("axes", "call", "match"),
    [
        (("x",), lambda x: natjax.na2d(x, x, x, 3), "must name 2 axes"),
        ((None, "x"), lambda x: natjax.na2d(x, x, x, 3), "multiple of them.*8, 6.*1, 4"),
        (("z", None), lambda x: natjax.na2d(x, x, x, 3), "must be axes of the mesh.*z"),
        (("y", None), lambda x: natjax.na2d_qk(x, x, 3), "unfused ops"),
        (
            ("y", None),
            lambda x: natjax.na2d(x, x, x, 3, query_offset=0, key_offset=0),
            "query_offset.*must be None",
        ),
        (("y", None), lambda x: natjax.na2d(x, x, x, 9), "kernel_size.*8, 6"),
    ],
)
def test_errors_say_what_would_work(axes, call, match, mesh):
    x = jnp.zeros((1, 8, 6, 1, 2))
    with (
        natjax.sharding.space(*axes, mesh=mesh),
        pytest.raises((ValueError, NotImplementedError), match=match),
    ):
        call(x)


def test_errors_of_the_context(mesh):
    x = jnp.zeros((1, 8, 6, 1, 2))
    with natjax.sharding.space("y", None), pytest.raises(ValueError, match="mesh must be a mesh"):
        natjax.na2d(x, x, x, 3)
    for axes in ((), (None,), ("x", "x"), ("x", None, None, None), ("", "x")):
        with pytest.raises(ValueError, match="one to three"), natjax.sharding.space(*axes):
            pass
