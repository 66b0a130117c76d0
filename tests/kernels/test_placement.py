"""Kernels that no compiler partitions, mapped over the devices of a mesh when they are traced."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, fused, value_and_gradients
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import natjax
from natjax.kernels import registry
from natjax.kernels.sharding.one_device import on_one_device
from natjax.kernels.sharding.placement import Split
from natjax.kernels.tuning.problems import Problem

pytestmark = [
    pytest.mark.skipif(
        "mosaic_tpu" not in registry.names(), reason="the kernels for TPUs are not there"
    ),
    pytest.mark.skipif(
        jax.default_backend() != "cpu",
        reason="kernels that are not interpreted do not run on the CPU devices of a mesh",
    ),
]

PROBLEM = Problem(
    name="mapped", shape=(6, 5), kernel_size=(3, 3), batch=8, heads=4, kv_heads=2, head_dim=8
)


def programs(text):
    """Batch and lanes, 16 a head, of what each kernel of a traced program gives first."""
    return re.findall(r":f32\[(\d+),6,5,(\d+)\](?: \w+:\S+)* = pallas_call\[", text)


def in_remat(function):
    return jax.checkpoint(function)


def in_vmap(function):
    """Every image for itself: only all of them together are a batch that devices can share."""

    def run(arrays):
        rpb = arrays["rpb"]
        images = {name: x[:, None] for name, x in arrays.items() if name != "rpb"}
        results = jax.vmap(lambda image: function(image | {"rpb": rpb}))(images)
        return jax.tree.map(lambda x: x[:, 0], results)

    return run


def in_vmap_of_biases(function):
    def run(arrays):
        biases = jnp.stack([arrays["rpb"], 2 * arrays["rpb"]])
        results = jax.vmap(lambda rpb: function(arrays | {"rpb": rpb}))(biases)
        return jax.tree.map(lambda x: x.sum(axis=0), results)

    return run


def in_scan(function):
    def run(arrays):
        def turn(total, _):
            return jax.tree.map(jnp.add, total, function(arrays)), None

        return jax.lax.scan(turn, jax.tree.map(jnp.zeros_like, function(arrays)), length=2)[0]

    return run


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("transform", "images"),
    [
        (in_remat, 1),
        (in_vmap, 1),
        (in_vmap_of_biases, 2),
        pytest.param(in_scan, 1, marks=pytest.mark.slow),
    ],
)
def test_results_are_those_of_one_device(transform, images, interpreted, mesh_of):
    function, arrays = transform(fused(PROBLEM, "mosaic_tpu")), PROBLEM.arrays()
    expected = value_and_gradients(function, arrays)
    mesh = mesh_of((4, 2), ("data", "fsdp"), AxisType.Auto)
    with jax.set_mesh(mesh):
        traced = str(jax.make_jaxpr(functools.partial(value_and_gradients, function))(arrays))
        actual = value_and_gradients(function, arrays)
    found = programs(traced)
    assert len(found) >= 2
    assert {int(batch) for batch, _ in found} == {images}
    assert_close(actual, expected)


@pytest.mark.optimised
def test_devices_exchange_nothing_but_the_sum_of_the_biases_gradients(interpreted, mesh_of):
    mesh = mesh_of((4, 2), ("data", "fsdp"), AxisType.Auto)
    arrays = PROBLEM.arrays()
    shardings = {
        name: NamedSharding(mesh, P(("data", "fsdp")) if name != "rpb" else P()) for name in arrays
    }
    run = functools.partial(value_and_gradients, fused(PROBLEM, "mosaic_tpu"))
    with jax.set_mesh(mesh):
        placed = jax.device_put(arrays, shardings)
        text = jax.jit(run).lower(placed).compile().as_text()
    exchanged = re.findall(
        r"= \w+\[([\d,]*)\]\S* (?:all-reduce|all-gather|all-to-all|collective-permute|"
        r"reduce-scatter)(?:-start)?\(",
        text,
    )
    assert exchanged == ["1,4,25"]


def test_axes_that_are_mapped_already_are_left_alone(interpreted, mesh_of):
    """Inside of a `jax.shard_map` over some axes, the others are still mapped."""
    mesh = mesh_of((4, 2), ("data", "fsdp"), AxisType.Auto)
    run, arrays = fused(PROBLEM, "mosaic_tpu"), PROBLEM.arrays()
    specs = {name: P("data") if name != "rpb" else P() for name in arrays}
    mapped = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=(P("data"),) * 2,
        axis_names={"data"},
        check_vma=False,
    )
    assert programs(str(jax.make_jaxpr(mapped)(arrays))) == [("1", "64")]
    for x, y in zip(jax.jit(mapped)(arrays), run(arrays), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def traced(mesh, spec, function=lambda x: natjax.na2d(x, x, x, 3, implementation="mosaic_tpu")):
    x = jax.device_put(jnp.zeros((8, 6, 5, 4, 8)), NamedSharding(mesh, spec))
    return programs(str(jax.make_jaxpr(function)(x)))


def test_explicit_axes_say_what_is_split(interpreted, mesh_of):
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Explicit)
    assert traced(mesh, P("data", None, None, "model")) == [("2", "32")]
    assert traced(mesh, P(None, None, None, "data")) == [("8", "16")]
    assert traced(mesh, P(None, "model")) == [("8", "64")]


def test_automatic_axes_split_the_batch_unless_somebody_says_otherwise(interpreted, mesh_of):
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto)
    heads = P("data", None, None, "model")
    assert traced(mesh, heads) == [("1", "64")]
    with natjax.sharding.split(batch="data", heads="model"):
        assert traced(mesh, heads) == [("2", "32")]
    with natjax.sharding.split(heads=("data",)):
        assert traced(mesh, heads) == [("4", "16")]
    with (
        natjax.sharding.split(batch="rows"),
        pytest.raises(ValueError, match=r"must be axes of the mesh, .*; got \['rows'\]"),
    ):
        traced(mesh, heads)
    with pytest.raises(ValueError, match="name each mesh axis once"):
        natjax.sharding.split(batch=("a", "b"), heads="a").__enter__()


def test_arrays_at_hand_say_what_is_split(interpreted, mesh_of, monkeypatch):
    """Outside of `jax.jit` their shardings are known, also on a mesh with automatic axes."""
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto)
    ops = "natjax.kernels.backends.mosaic_tpu.ops"
    seen = []
    of = __import__(ops, fromlist=["x"]).placement_of
    monkeypatch.setattr(f"{ops}.placement_of", lambda x: seen.append(of(x)) or seen[-1])
    x = jax.device_put(
        jnp.ones((8, 6, 5, 4, 8)), NamedSharding(mesh, P("data", None, None, "model"))
    )
    out = natjax.na2d(x, x, x, 3, implementation="mosaic_tpu")
    assert seen[0].split == Split(("data",), ("model",), frozenset({"data", "model"}))
    assert out.sharding.is_equivalent_to(x.sharding, x.ndim)


@pytest.mark.parametrize(
    ("batch", "sets", "axes"),
    [
        (24, 1, (("model", "data", "rest"), (), ())),
        (2, 1, (("model",), (), ())),
        # The first axis does not divide it, but the last one does.
        (9, 1, (("rest",), (), ())),
        (0, 1, (("model", "data", "rest"), (), ())),
        # What is left over splits sets of images, if it divides those.
        (2, 12, (("model",), (), ("data", "rest"))),
    ],
)
def test_an_axis_splits_what_it_divides(batch, sets, axes):
    mesh = jax.sharding.AbstractMesh((4, 2, 3), ("data", "model", "rest"))
    split = Split(("model",), (), frozenset({"model"}))
    assert split.over(mesh, batch, 4, sets) == axes


@pytest.mark.oldest
@pytest.mark.parametrize("is_vmapped", [False, True])
def test_a_choice_is_made_when_a_program_is_lowered(is_vmapped, mesh_of):
    def choose(x, y):
        return on_one_device(lambda x, y: {"a": (x + y[0],)}, lambda x, y: {"a": (x - y[0],)}, x, y)

    def run(x, y):
        return (jax.vmap(choose, in_axes=(0, None)) if is_vmapped else choose)(x, (y,))["a"][0]

    x, y = np.arange(8.0, dtype=np.float32), np.float32(1)
    mesh = mesh_of((8,), ("data",), AxisType.Auto)
    place = NamedSharding(mesh, P("data"))
    np.testing.assert_array_equal(run(x, y), x + 1)
    np.testing.assert_array_equal(jax.jit(run)(x, y), x + 1)
    on_several = jax.jit(run, in_shardings=(place, None), out_shardings=place)
    np.testing.assert_array_equal(on_several(x, y), x - 1)
