"""What is particular to the kernels for GPUs: blocks of every size, refusals, derivatives."""

import dataclasses
import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import assert_close, fused, unfused, value_and_gradients
from edges import named
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    NamedSharding,
    SingleDeviceSharding,
    use_abstract_mesh,
)
from jax.sharding import PartitionSpec as P

import natjax
from natjax.kernels import device, kernel_ops, registry, specialise
from natjax.kernels.backends import pallas_triton
from natjax.kernels.backends.triton_common.config import KernelConfig
from natjax.kernels.spec import KERNELS
from natjax.kernels.tuning import settings
from natjax.kernels.tuning.problems import Problem

BLOCKS = {
    "long tiles": {1: ((32,), (16,)), 2: ((2, 16), (4, 4)), 3: ((1, 2, 16), (2, 2, 4))},
    "long chunks": {1: ((16,), (32,)), 2: ((8, 2), (1, 32)), 3: ((4, 2, 2), (1, 8, 4))},
}
CHOSEN = [
    pytest.param("1d-causal", "long tiles", marks=pytest.mark.slow),
    pytest.param("1d-causal-stride-dilation", "long chunks", marks=pytest.mark.slow),
    ("2d-prime", "long tiles"),
    ("2d-everything", "long chunks"),
    ("3d-everything", "long tiles"),
]


@pytest.fixture(autouse=True)
def _interpreted(interpreted):
    pass


def run(problem, arrays, implementation):
    return value_and_gradients(fused(problem, implementation), arrays)


@pytest.mark.parametrize(("name", "blocks"), CHOSEN)
def test_blocks_of_any_size_give_the_same(name, blocks):
    """Many tiles and many chunks each, where the suggested ones would be few."""
    problem = named(name)
    config = KernelConfig(*BLOCKS[blocks][problem.ndim], num_warps=1)
    arrays = problem.arrays()
    with settings.using(dict.fromkeys(KERNELS, config)):
        actual = run(problem, arrays, "pallas_triton")
    assert_close(actual, run(problem, arrays, "reference"))


@pytest.mark.parametrize("name", ["1d-causal-stride-dilation", "2d-no-bias"])
def test_a_computed_mask_is_as_good_as_a_table(name, monkeypatch):
    """As for windows too large for a table."""
    problem = named(name)
    arrays = {k: v for k, v in problem.arrays().items() if k != "rpb"}
    calls = []

    def counted(backend, call, heads):
        calls.append(with_table(backend, call, heads))
        return calls[-1]

    with_table = specialise._with_table
    monkeypatch.setattr(specialise, "_with_table", counted)
    monkeypatch.setattr(specialise, "_SMALL_TABLE", 0)
    assert_close(run(problem, arrays, "pallas_triton"), run(problem, arrays, "reference"))
    assert calls == [frozenset()]


def test_chunks_that_a_tile_does_not_meet_may_be_skipped(monkeypatch):
    """From row to row and from frame to frame, and over again for the second head."""
    module = importlib.import_module("natjax.kernels.backends.pallas_triton.program")
    monkeypatch.setattr(module, "skips_chunks", lambda _: True)
    problem = Problem(
        name="3d", shape=(4, 7, 8), kernel_size=(2, 5, 3), heads=2, kv_heads=1, head_dim=16
    )
    arrays = problem.arrays()
    config = KernelConfig((2, 4, 8), (1, 4, 4), num_warps=1)
    with settings.using(dict.fromkeys(KERNELS, config)):
        actual = run(problem, arrays, "pallas_triton")
    assert_close(actual, run(problem, arrays, "reference"))


@pytest.mark.parametrize("head_dim", [48, 96, 256])
def test_head_sizes(head_dim):
    """Further ones, 8, 24, 32 and 80, are among the problems that all implementations run."""
    problem = Problem(name="d", shape=(20,), kernel_size=(5,), heads=2, head_dim=head_dim)
    arrays = problem.arrays()
    assert_close(run(problem, arrays, "pallas_triton"), run(problem, arrays, "reference"))


def test_without_a_gpu_it_says_what_would_work(monkeypatch):
    if jax.default_backend() == "gpu":
        pytest.skip("this is about machines without a GPU")
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    x = jnp.zeros((1, 9, 1, 8))
    message = (
        r"needs an NVIDIA GPU, Ampere or later; got 'cpu' \(cpu\); use "
        'implementation="xla".*NATJAX_INTERPRET=1'
    )
    with pytest.raises(NotImplementedError, match=message):
        natjax.na1d(x, x, x, 3, implementation="pallas_triton")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        ("float64", 8, 'takes the dtypes .*; got float64; use implementation="xla"'),
        ("float32", 257, 'takes head sizes up to 256; got 257; use implementation="xla"'),
    ],
)
def test_refusals_say_what_would_work(dtype, head_dim, message, x64):
    x = jnp.zeros((1, 9, 1, head_dim), dtype)
    with pytest.raises(NotImplementedError, match=message):
        natjax.na1d(x, x, x, 3, implementation="pallas_triton")
    with pytest.raises(NotImplementedError, match=message):
        natjax.na1d_qk(x, x, 3, implementation="pallas_triton")
    assert natjax.na1d(x, x, x, 3).dtype == dtype


@pytest.mark.parametrize(
    ("kind", "capability", "accepted"),
    [("Tesla V100", "7.0", False), ("AMD Instinct", "gfx942", False), ("NVIDIA A100", "8.0", True)],
)
def test_older_and_other_gpus_are_refused(kind, capability, accepted, monkeypatch):
    gpu = types.SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=capability)
    monkeypatch.delenv("NATJAX_INTERPRET", raising=False)
    monkeypatch.setattr(device, "targets", lambda: (gpu,))
    x = jax.ShapeDtypeStruct((1, 9, 1, 8), jnp.float32)

    def attend(implementation):
        run = functools.partial(natjax.na1d, kernel_size=3, implementation=implementation)
        return str(jax.make_jaxpr(run)(x, x, x))

    assert ("natjax_forward" in attend(None)) == accepted
    if not accepted:
        with pytest.raises(NotImplementedError, match=f"Ampere or later; got '{kind}'"):
            attend("pallas_triton")


def test_more_than_can_be_indexed_is_refused():
    x = jax.ShapeDtypeStruct((1, 2**21, 2**10, 8), jnp.bfloat16)
    run = functools.partial(natjax.na1d, kernel_size=3, implementation="pallas_triton")
    with pytest.raises(NotImplementedError, match=r"fewer than 2\*\*31 queries an image"):
        jax.eval_shape(run, x, x, x)


@pytest.mark.parametrize("function", [fused, unfused])
def test_a_batch_that_cannot_be_indexed_goes_in_parts(function, monkeypatch):
    """Also one that `jax.vmap` made, after the arguments were checked."""
    problem = Problem(name="p", shape=(7,), kernel_size=(3,), batch=4, heads=2)
    arrays = problem.arrays()
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), arrays)
    calls = [
        lambda: value_and_gradients(function(problem, "pallas_triton"), arrays),
        lambda: jax.vmap(function(problem, "pallas_triton"), in_axes=(0,))(stacked),
        lambda: jax.vmap(
            lambda query: function(problem, "pallas_triton")(arrays | {"query": query})
        )(stacked["query"]),
    ]
    expected = [call() for call in calls]
    entries = 7 * 2 * (3 if function is unfused else 1)
    # One image alone is below it, two are not.
    monkeypatch.setattr(kernel_ops, "INDEXABLE", entries + 1)
    kernel_ops._launch.cache_clear()
    jax.clear_caches()
    sizes = []
    launch = pallas_triton.launch

    def watched(kernel, call, *arrays):
        sizes.append(arrays[0].shape[0])
        return launch(kernel, call, *arrays)

    monkeypatch.setattr(pallas_triton, "launch", watched)
    actual = [call() for call in calls]
    assert set(sizes) == {1}
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.oldest
def test_compiles_for_a_gpu_that_is_not_there():
    """Lowering and export for an H100, as far as Triton's code; benchmarks/aot.py goes further."""
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), abstract_device=h100)
    problem = named("2d-everything")
    here = SingleDeviceSharding(jax.devices()[0])
    arrays = {
        k: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=here)
        for k, x in problem.arrays().items()
    }

    @jax.jit
    def step(arrays):
        out, pull = jax.vjp(lambda a: natjax.na2d(**a, **problem.arguments), arrays)
        return out, pull(out)

    with use_abstract_mesh(mesh), pytest.MonkeyPatch.context() as patch:
        patch.delenv("NATJAX_INTERPRET", raising=False)
        # Triton's code is not among what JAX promises to read for years.
        triton_call = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
        exported = jax.export.export(step, platforms=["cuda"], disabled_checks=[triton_call])
        text = exported(arrays).mlir_module()
    for kernel in ("forward", "dquery", "dkeyvalue", "dbias"):
        assert f"natjax_{kernel}" in text


def test_biases_of_huge_windows_are_refused(monkeypatch):
    monkeypatch.setattr(specialise, "_LARGEST_TABLE", 100)
    arrays = named("2d-prime").arrays()
    with pytest.raises(NotImplementedError, match=r"bias where .* got kernel_size=\(7, 7\) and 2"):
        natjax.na2d(**arrays, kernel_size=7, implementation="pallas_triton")


def calls_of(op, implementation):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 9, 1, 8)), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((1, 9, 1, 3)), jnp.float32)
    kwargs = {"kernel_size": 3, "implementation": implementation}
    functions = {
        "attention": lambda x: natjax.na1d(x, x, x, **kwargs),
        "qk": lambda x: natjax.na1d_qk(x, x, **kwargs),
        "av": lambda x: natjax.na1d_av(w, x, **kwargs) ** 2,
    }
    return functions[op], x


def second_derivative(function, x):
    return jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(function(x) ** 2))(x) ** 2))(x)


def forward_mode(function, x):
    return jax.jvp(jax.jit(function), (x,), (jnp.cos(x),))


def forward_over_reverse(function, x):
    return jax.jvp(jax.grad(lambda x: jnp.sum(function(x) ** 2)), (x,), (jnp.cos(x),))


def reverse_over_forward(function, x):
    return jax.grad(lambda x: jnp.sum(jax.jvp(function, (x,), (jnp.cos(x),))[1]))(x)


@pytest.mark.oldest
@pytest.mark.parametrize(
    "derive", [forward_mode, second_derivative, forward_over_reverse, reverse_over_forward]
)
@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_derivatives_that_kernels_lack_are_those_of_plain_jax(op, derive):
    actual, expected = (derive(*calls_of(op, name)) for name in ("pallas_triton", "xla"))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.oldest
@pytest.mark.parametrize("op", ["attention", "qk", "av"])
def test_gradients_of_a_vmapped_op_are_by_kernels(op):
    """Whatever the order of vmap and grad, and with an argument that is not vmapped."""
    function, x = calls_of(op, "pallas_triton")
    stacked = jnp.stack([x, x + 1, 2 * x])

    def loss(x):
        return jnp.sum(function(x) ** 2)

    def of_all(x):
        return jnp.sum(jax.vmap(loss)(x))

    expected = jnp.stack([jax.grad(loss)(one) for one in stacked])
    for gradient in (jax.vmap(jax.grad(loss)), jax.grad(of_all)):
        np.testing.assert_allclose(gradient(stacked), expected, rtol=1e-5, atol=1e-5)
        jaxpr = str(jax.make_jaxpr(gradient)(stacked))
        backward = {"attention": "dkeyvalue", "qk": "av_transposed", "av": "av_transposed"}[op]
        assert f"natjax_{backward}" in jaxpr


def test_what_is_not_differentiated_is_not_made_zero_first():
    """Tangents that are zero are none at all: no arrays of zeros wait for the backward pass."""
    function = functools.partial(natjax.na1d, kernel_size=3, implementation="pallas_triton")
    x = jnp.ones((1, 9, 1, 8))
    _, pull = jax.vjp(lambda query: function(query, x, x), x)
    kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
    # Query, key, value, output and log-sum-exp.
    assert len(kept) <= 5


def test_none_takes_it_where_it_runs():
    """Interpreted, it accepts what a GPU would; float64 goes on to the next."""
    problem = named("1d")
    arrays = problem.arrays()
    jaxpr = str(jax.make_jaxpr(lambda a: problem.op(**a, **problem.arguments))(arrays))
    assert ("natjax_forward" in jaxpr) != ("pure_callback" in jaxpr)
    assert registry.names()[:2] == ("jax_triton", "pallas_triton")


@pytest.mark.parametrize(
    ("setting", "head_dim", "precision", "products"),
    [
        (None, 16, "HIGH", 6),
        (None, 65, "HIGHEST", 2),
        ("highest", 16, "HIGHEST", 2),
        ("tensorfloat32", 16, "HIGH", 2),
        ("high", 16, "HIGH", 2),
    ],
)
def test_float32_products_are_as_accurate_as_asked(
    setting, head_dim, precision, products, monkeypatch
):
    # The kernels alone, without the branch in plain JAX that programs have for other platforms.
    monkeypatch.setenv("NATJAX_INTERPRET", "1")
    problem = dataclasses.replace(named("1d"), head_dim=head_dim)
    arrays = problem.arrays()
    with jax.default_matmul_precision(setting):
        jaxpr = str(jax.make_jaxpr(fused(problem, "pallas_triton"))(arrays))
    found = {word for word in ("HIGHEST", "HIGH") if f"Precision.{word}," in jaxpr}
    assert found == {precision}
    assert jaxpr.count("dot_general") == products


@pytest.mark.oldest
@pytest.mark.optimised
@pytest.mark.parametrize("dilation", [1, 2])
def test_inputs_are_read_in_place(dilation):
    """Nothing of the size of the inputs is copied or transposed before the kernels."""
    problem = Problem(
        name="2d", shape=(24, 16), kernel_size=(5, 5), dilation=dilation, batch=5, head_dim=24
    )
    arrays = problem.arrays()

    def forward_and_backward(arrays):
        out, pull = jax.vjp(
            lambda a: natjax.na2d(**a, **problem.arguments, implementation="pallas_triton"), arrays
        )
        return pull(out)

    jaxpr = jax.make_jaxpr(forward_and_backward)(arrays)
    size = arrays["query"].size
    moved = [
        (equation.primitive.name, equation.outvars[0].aval.shape)
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("transpose", "gather", "copy", "concatenate", "pad")
        and equation.outvars[0].aval.size == size
    ]
    assert not moved


def equations(jaxpr):
    """All equations outside of kernels."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "pallas_call":
            continue
        for inner in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)


@pytest.mark.optimised
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_stay_on_their_devices(kv_heads, mesh_of):
    """Key heads are split as query heads are, but one for all is on every device."""
    if jax.default_backend() == "gpu":
        pytest.skip("kernels for GPUs do not run on the CPU devices of a mesh")
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Auto)
    problem = Problem(
        name="gqa", shape=(40,), kernel_size=(7,), batch=4, heads=4, kv_heads=kv_heads
    )
    arrays = problem.arrays()
    heads = {"query": "model", "key": "model" if kv_heads == 2 else None, "rpb": None}
    heads["value"] = heads["key"]
    specs = {k: P("data", None, heads[k]) if k != "rpb" else P() for k in arrays}
    shardings = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}

    @functools.partial(jax.jit, in_shardings=(shardings,))
    def gradients(arrays):
        attend = functools.partial(problem.op, **problem.arguments, implementation="pallas_triton")
        return jax.grad(lambda arrays: jnp.sum(attend(**arrays) ** 2))(arrays)

    placed = jax.device_put(arrays, shardings)
    assert " all-gather" not in gradients.lower(placed).compile().as_text()
    expected = jax.grad(
        lambda arrays: jnp.sum(problem.op(**arrays, **problem.arguments, implementation="xla") ** 2)
    )(arrays)
    for name, x in gradients(placed).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.oldest
def test_vmap_over_several_things_at_once():
    problem = named("1d")
    stacked = [problem.arrays(seed) for seed in range(3)]
    attend = functools.partial(problem.op, **problem.arguments, implementation="pallas_triton")
    keys = jnp.stack([a["key"] for a in stacked])
    biases = jnp.stack([a["rpb"] for a in stacked])
    first = stacked[0]

    def loss(key, rpb):
        return jnp.sum(attend(first["query"], key, first["value"], rpb=rpb) ** 2)

    grads = jax.vmap(jax.grad(loss, argnums=(0, 1)))(keys, biases)
    for i in range(3):
        expected = jax.grad(loss, argnums=(0, 1))(keys[i], biases[i])
        for x, y in zip(grads, expected, strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5)


def test_wrappers_change_nothing_to_the_bit(mesh_of):
    """Direct, jitted, vmapped and sharded calls run the same kernels on the same numbers."""
    if jax.default_backend() == "gpu":
        pytest.skip("kernels for GPUs do not run on the CPU devices of a mesh")
    problem = Problem(
        name="s", shape=(6, 5), kernel_size=(3, 3), batch=4, heads=4, kv_heads=2, head_dim=8
    )
    arrays = problem.arrays()
    run = fused(problem, "pallas_triton")
    expected = run(arrays)
    rows = {k: x if k == "rpb" else x[:, None] for k, x in arrays.items()}
    in_axes = ({k: None if k == "rpb" else 0 for k in arrays},)
    mesh = mesh_of((4, 2), ("data", "model"), AxisType.Explicit)
    specs = {k: P("model") if k == "rpb" else P("data", None, None, "model") for k in arrays}
    placed = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in arrays.items()}
    calls = {
        "jitted": jax.jit(run)(arrays),
        "vmapped": [x[:, 0] for x in jax.vmap(run, in_axes=in_axes)(rows)],
        "sharded": jax.jit(run)(placed),
    }
    for name, actual in calls.items():
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)
